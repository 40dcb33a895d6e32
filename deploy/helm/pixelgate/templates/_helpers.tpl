{{/* Every object's name begins with it; short enough for a pod's number and a suffix behind it. */}}
{{- define "pixelgate.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pixelgate.selector" -}}
app.kubernetes.io/name: pixelgate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pixelgate.labels" -}}
{{ include "pixelgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "pixelgate.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What pods of the set and Jobs for stranded volumes have in common. */}}
{{- define "pixelgate.pod" -}}
# A Service named pixelgate-something would inject variables that the program refuses as unknown.
enableServiceLinks: false
automountServiceAccountToken: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  # Only a fresh volume is changed: secrets in the directory keep their modes.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "pixelgate.container" -}}
image: {{ include "pixelgate.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
resources: {{ toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - {name: data, mountPath: /var/lib/pixelgate}
  - {name: config, mountPath: /etc/pixelgate, readOnly: true}
  {{- if .Values.secrets }}
  - {name: secrets, mountPath: /run/secrets/pixelgate, readOnly: true}
  {{- end }}
  {{- if .Values.tls.secret }}
  # The whole directory: a file mounted by itself is not renewed.
  - {name: tls, mountPath: /run/secrets/pixelgate-tls, readOnly: true}
  {{- end }}
{{- end -}}

{{- define "pixelgate.environment" -}}
- {name: PIXELGATE_DATA_DIR, value: /var/lib/pixelgate}
- {name: PIXELGATE_SERVER__LISTEN, value: "0.0.0.0:8080"}
- {name: PIXELGATE_OPS__LISTEN, value: "0.0.0.0:8081"}
- {name: PIXELGATE_MANAGEMENT__LISTEN, value: "0.0.0.0:8082"}
- {name: PIXELGATE_SERVER__SHUTDOWN_DELAY, value: "{{ .Values.shutdownDelaySeconds }}s"}
- {name: PIXELGATE_SERVER__SHUTDOWN_TIMEOUT, value: "{{ .Values.shutdownTimeoutSeconds }}s"}
{{- range $name, $_ := .Values.secrets }}
- {name: {{ $name }}_FILE, value: /run/secrets/pixelgate/{{ $name }}}
{{- end }}
{{- if .Values.tls.secret }}
- {name: PIXELGATE_SERVER__TLS__CERTIFICATE, value: /run/secrets/pixelgate-tls/tls.crt}
- {name: PIXELGATE_SERVER__TLS__KEY, value: /run/secrets/pixelgate-tls/tls.key}
{{- end }}
{{- end -}}

{{- define "pixelgate.volumes" -}}
- name: config
  configMap:
    name: {{ include "pixelgate.fullname" . }}
{{- if .Values.secrets }}
- name: secrets
  projected:
    # The program's own user reads them, through its group.
    defaultMode: 0440
    sources:
      {{- range $name, $from := .Values.secrets }}
      - secret:
          name: {{ $from.secret | quote }}
          items:
            - {key: {{ $from.key | quote }}, path: {{ $name }}}
      {{- end }}
{{- end }}
{{- with .Values.tls.secret }}
- name: tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Several nodes need pixels that all of them know: refused here rather than found out by websites. */}}
{{- define "pixelgate.check" -}}
{{- $shares := regexMatch "(?m)^\\s*(mode\\s*=\\s*\"proxy\"|database\\s*=|pixels\\s*=|\\[\\[registry\\.pixels\\]\\])" .Values.config -}}
{{- if and (gt (int .Values.replicas) 1) (not $shares) (not (hasKey .Values.secrets "PIXELGATE_REGISTRY__DATABASE")) -}}
{{- fail "replicas: more than one needs pixels that all nodes know: set registry.mode = \"proxy\", registry.database or registry.pixels in config" -}}
{{- end -}}
{{- if and .Values.retireStranded .Values.publishStranded (not (regexMatch "(?m)^\\s*(kafka\\.)?progress_topic\\s*=\\s*[\"'][^\"']" .Values.config)) -}}
{{- fail "retireStranded: a node is retired in kafka.progress_topic, and config sets none" -}}
{{- end -}}
{{- range .Values.publishStranded -}}
{{- if lt (int .) (int $.Values.replicas) -}}
{{- fail (printf "publishStranded: pod %d runs and publishes by itself; lower replicas first" (int .)) -}}
{{- end -}}
{{- end -}}
{{- range .Values.retryParked -}}
{{- if lt (int .) (int $.Values.replicas) -}}
{{- fail (printf "retryParked: pod %d runs and holds its volume; lower replicas first" (int .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
