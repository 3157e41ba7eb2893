# A part of nodes.sh, which sources it: the charts beside the operator's, and a node that is lost to a new member.
# shellcheck shell=bash

# --- the other charts, as a user installs, tests and upgrades them
team_chart() {
    helm upgrade --install team "$root/charts/metastore-cluster" --set test.image=localhost/metastore:0.1.0-test \
        --set spec.storage.size=1Gi,spec.recovery.memberReplacement.unhealthyAfter=60s "$@"
}
cluster_by_chart() {
    # Its first member must not be on the node that gets lost below.
    kubectl cordon node-2
    team_chart --set spec.replicas=1
    kubectl wait --for=condition=Available msc/team --timeout="${limit_seconds}s"
    helm test team
}
step "helm makes a cluster" cluster_by_chart
# The new member is sent to a node that is lost already, which Kubernetes notices after 50 s only.
lost_newcomer() {
    local newcomer
    kubectl cordon node-1 && kubectl cordon node-3 && kubectl uncordon node-2
    link_of_node_2 down
    team_chart --set spec.replicas=3
    eventually "a member is sent to the lost node" on_node_2 team
    newcomer=$(on_node_2 team)
    kubectl uncordon node-1 && kubectl uncordon node-3
    eventually "it is given up" gone team "$newcomer"
    eventually "three members serve without the node" settled team 3
    link_of_node_2 up
    eventually "the node is back" is True field node node-2 '{.status.conditions[?(@.type=="Ready")].status}'
    eventually "no Pod is left over" is 3 eval 'kubectl get pods -l metastore.io/cluster=team,metastore.io/member -o name | wc -l'
    helm test team
}
on_node_2() {
    kubectl get pods -l "metastore.io/cluster=$1,metastore.io/member" --field-selector spec.nodeName=node-2 \
        -o jsonpath='{.items[0].metadata.labels.metastore\.io/member}'
}
step "a new member is sent to a lost node" lost_newcomer
cluster_without_operator() {
    local image=image.registry=,image.repository=localhost/metastore,image.tag=0.1.0-test
    helm install alone "$root/charts/metastore" --set "$image,persistence.size=1Gi" --wait --timeout 3m
    helm test alone
    in_pod alone put key value
    helm upgrade alone "$root/charts/metastore" --set "$image,persistence.size=1Gi,logLevel=warn" --wait --timeout 3m
    kubectl rollout status statefulset/alone --timeout="${limit_seconds}s"
    helm test alone
    in_pod alone get key | grep -x value
    helm uninstall alone
}
in_pod() { kubectl exec "$1-0" -- metastorectl "${@:2}"; }
step "a cluster without the operator, and its upgrade" cluster_without_operator
upgrade_operator() {
    helm upgrade metastore-operator "$root/charts/metastore-operator" --namespace metastore-system --reuse-values \
        --set replicas=1,logLevel=debug --wait --timeout 2m
    helm test metastore-operator --namespace metastore-system
    eventually "the cluster of the chart is well" settled team 3
    helm uninstall team
}
step "helm upgrades the operator" upgrade_operator
