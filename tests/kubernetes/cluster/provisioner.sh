#!/usr/bin/env bash
# Gives every claim of the class `standard` a folder below $CLUSTER_DIR/volumes, grows it, and takes it away again.
# Started by up.sh; runs until it is ended.
#
# Volumes are of the kind `local`: unlike host paths, the kubelet gives them to the group that a Pod asks for
# (fsGroup), as it does with those of a cloud. All nodes see the same folders, so Pods may move.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

CLASS=standard
LOOK_INTERVAL_SECONDS=0.5

api() {
  curl -sf -m 10 --cacert "$PKI/ca.crt" --cert "$PKI/admin.crt" --key "$PKI/admin.key" "https://127.0.0.1:$SECURE_PORT$1" "${@:2}"
}

# provide NAMESPACE NAME UID SIZE: a volume for a claim. Its name is the claim's, so none is made twice.
provide() {
  local volume=pvc-$3
  mkdir -p "$CLUSTER_DIR/volumes/$volume"
  admin create -f - <<YAML || true
apiVersion: v1
kind: PersistentVolume
metadata:
  name: $volume
  annotations: {pv.kubernetes.io/provisioned-by: $PROVISIONER}
spec:
  storageClassName: $CLASS
  capacity: {storage: "$4"}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  claimRef: {apiVersion: v1, kind: PersistentVolumeClaim, namespace: $1, name: $2, uid: $3}
  local: {path: "$CLUSTER_DIR/volumes/$volume"}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: Exists}]}]}}
YAML
}

# grow NAMESPACE NAME VOLUME SIZE: a folder has no limit, so only the objects change.
grow() {
  local change='{"capacity":{"storage":"'$4'"}}'
  admin patch pv "$3" --type=merge -p "{\"spec\":$change}" &&
    admin patch pvc -n "$1" "$2" --subresource=status --type=merge -p "{\"status\":$change}" || true
}

# take_away VOLUME
take_away() {
  rm -rf "${CLUSTER_DIR:?}/volumes/$1"
  admin delete pv "$1" --wait=false || true
}

while true; do
  sleep "$LOOK_INTERVAL_SECONDS"
  claims=$(api /api/v1/persistentvolumeclaims) || continue
  volumes=$(api /api/v1/persistentvolumes) || continue
  jq -r --arg class "$CLASS" '.items[] | select(.spec.storageClassName == $class and .metadata.deletionTimestamp == null and .status.phase == "Pending")
    | [.metadata.namespace, .metadata.name, .metadata.uid, .spec.resources.requests.storage] | @tsv' <<<"$claims" |
    while IFS=$'\t' read -r namespace name uid size; do
      jq -e --arg name "pvc-$uid" 'any(.items[]; .metadata.name == $name)' <<<"$volumes" >/dev/null || provide "$namespace" "$name" "$uid" "$size"
    done
  jq -r --arg class "$CLASS" '.items[] | select(.spec.storageClassName == $class and .status.phase == "Bound"
      and .spec.resources.requests.storage != .status.capacity.storage)
    | [.metadata.namespace, .metadata.name, .spec.volumeName, .spec.resources.requests.storage] | @tsv' <<<"$claims" |
    while IFS=$'\t' read -r namespace name volume size; do grow "$namespace" "$name" "$volume" "$size"; done
  jq -r --arg class "$CLASS" '.items[] | select(.spec.storageClassName == $class and .status.phase == "Released" and .metadata.deletionTimestamp == null)
    | .metadata.name' <<<"$volumes" |
    while read -r volume; do take_away "$volume"; done
done
