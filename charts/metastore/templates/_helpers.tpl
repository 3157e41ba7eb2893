{{- define "metastore.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "metastore.selector" -}}
app.kubernetes.io/name: metastore
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "metastore.labels" -}}
{{ include "metastore.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "metastore.image" -}}
{{- $registry := default .Values.image.registry .Values.global.imageRegistry -}}
{{- $repository := ternary .Values.image.repository (printf "%s/%s" $registry .Values.image.repository) (empty $registry) -}}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end }}

{{- define "metastore.clientScheme" -}}
{{ ternary "https" "http" .Values.auth.client.secureTransport }}
{{- end }}

{{- define "metastore.peerScheme" -}}
{{ ternary "https" "http" .Values.auth.peer.secureTransport }}
{{- end }}

{{- define "metastore.domain" -}}
{{ include "metastore.name" . }}-headless.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{- define "metastore.initialCluster" -}}
{{- $members := list -}}
{{- range $number := until (int .Values.replicaCount) -}}
{{- $host := printf "%s-%d" (include "metastore.name" $) $number -}}
{{- $members = append $members (printf "%s=%s://%s.%s:2380" $host (include "metastore.peerScheme" $) $host (include "metastore.domain" $)) -}}
{{- end -}}
{{ join "," $members }}
{{- end }}
