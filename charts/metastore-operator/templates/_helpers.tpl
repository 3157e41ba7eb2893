{{- define "operator.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "operator.serviceAccount" -}}
{{- default (include "operator.name" .) .Values.serviceAccount.name -}}
{{- end }}

{{- define "operator.selector" -}}
app.kubernetes.io/name: metastore-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "operator.labels" -}}
{{ include "operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: metastore
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "operator.image" -}}
{{- $registry := default .Values.image.registry .Values.global.imageRegistry -}}
{{- $repository := ternary .Values.image.repository (printf "%s/%s" $registry .Values.image.repository) (empty $registry) -}}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end }}

{{- define "operator.serverRepository" -}}
{{- $registry := default .Values.serverImage.registry .Values.global.imageRegistry -}}
{{- ternary .Values.serverImage.repository (printf "%s/%s" $registry .Values.serverImage.repository) (empty $registry) -}}
{{- end }}

{{/* What the operator may do where its clusters are: nothing else. It never deletes or executes in Pods. */}}
{{- define "operator.rules" -}}
- apiGroups: [metastore.io]
  resources: [metastoreclusters]
  verbs: [get, list, watch, patch]
- apiGroups: [metastore.io]
  resources: [metastorebackups]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [metastore.io]
  resources: [metastorebackupschedules]
  verbs: [get, list, watch]
- apiGroups: [metastore.io]
  resources: [metastoretasks]
  verbs: [get, list, watch, delete]
- apiGroups: [metastore.io]
  resources: [metastoreclusters/status, metastorebackups/status, metastorebackupschedules/status, metastoretasks/status]
  verbs: [patch]
# Where the admission plugin OwnerReferencesPermissionEnforcement is on, owning an object needs it.
- apiGroups: [metastore.io]
  resources: [metastoreclusters/finalizers, metastorebackups/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, create, update, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, create, patch]
# Only Secrets whose names the operator knows: it never lists them.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch]
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [get, create, patch]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
