{{- define "lifelong.name" -}}
{{- .Values.nameOverride | default (ternary .Release.Name (printf "%s-lifelong" .Release.Name) (contains "lifelong" .Release.Name)) | trunc 45 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of everything; (dict "root" $ "part" "worker") */}}
{{- define "lifelong.labels" -}}
{{ include "lifelong.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "lifelong.selector" -}}
app.kubernetes.io/name: lifelong
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .part }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "lifelong.image" -}}
{{- $image := .root.Values.image -}}
{{- with $image.registry }}{{ . }}/{{ end }}{{ index $image .part }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* The settings as given, with what the chart decides: addresses, and the paths of what it mounts. */}}
{{- define "lifelong.settings" -}}
{{- $s := deepCopy .Values.settings -}}
{{- range $section := list "broker" "store" "bundle" "worker" "scorer" "events" "log" -}}
{{- if not (hasKey $s $section) }}{{ $_ := set $s $section dict }}{{ end -}}
{{- end -}}
{{- $_ := set $s.worker "metrics_host" "0.0.0.0" -}}
{{- $_ = set $s.worker "metrics_port" 9101 -}}
{{- if and .Values.worker.staticMembership (not (hasKey $s.worker "session_timeout_s")) -}}
{{- $_ = set $s.worker "session_timeout_s" 45 -}}
{{- end -}}
{{- $_ = set $s.scorer "host" "0.0.0.0" -}}
{{- $_ = set $s.scorer "port" 8080 -}}
{{- if $s.scorer.admin_port }}{{ $_ = set $s.scorer "admin_host" "0.0.0.0" }}{{ end -}}
{{- if $s.scorer.tls_client_ca -}}
{{- fail "settings.scorer.tls_client_ca: kubelet's probes have no certificate to show; ask clients for keys (secrets.keys), or let a mesh do mTLS" -}}
{{- end -}}
{{- with .Values.secrets -}}
{{- if .storeUrl.name }}{{ $_ = unset $s.store "url" }}{{ end -}}
{{- if .brokerCa.name }}{{ $_ = set $s.broker "ca_file" "/etc/lifelong/broker/ca.pem" }}{{ end -}}
{{- if .brokerTls.name }}{{ $_ = set $s.broker "cert_file" "/etc/lifelong/broker/tls.crt" }}{{ $_ = set $s.broker "key_file" "/etc/lifelong/broker/tls.key" }}{{ end -}}
{{- if .brokerKeyPassword.name }}{{ $_ = set $s.broker "key_password" "file:/etc/lifelong/broker/key_password" }}{{ end -}}
{{- if .saslPassword.name }}{{ $_ = set $s.broker "sasl_password" "file:/etc/lifelong/broker/sasl_password" }}{{ end -}}
{{- if .oauthClientSecret.name }}{{ $_ = set $s.broker "oauth_client_secret" "file:/etc/lifelong/broker/oauth_client_secret" }}{{ end -}}
{{- if .keys.name }}{{ $_ = set $s.scorer "keys" "/etc/lifelong/keys/keys.toml" }}{{ end -}}
{{- if .tls.name }}{{ $_ = set $s.scorer "tls_cert" "/etc/lifelong/tls/tls.crt" }}{{ $_ = set $s.scorer "tls_key" "/etc/lifelong/tls/tls.key" }}{{ end -}}
{{- end -}}
{{- with .Values.bundle -}}
{{- if and .volume .url }}{{ fail "bundle.volume and bundle.url: give one of them" }}{{ end -}}
{{- if and .url (not .sha256) }}{{ fail "bundle.sha256: needed with bundle.url, so that nobody can put another file in its place" }}{{ end -}}
{{- if .url }}{{ $_ = set $s.bundle "path" "/bundle/current" }}{{ end -}}
{{- if .volume }}{{ $_ = set $s.bundle "path" (printf "/bundle/%s" .path | trimSuffix "/") }}{{ end -}}
{{- end -}}
{{- range $section, $of := $s }}{{ if not $of }}{{ $_ = unset $s $section }}{{ end }}{{ end -}}
{{- toToml $s -}}
{{- end }}

{{/* What proves to Kafka who a worker is, as sources of a volume; a file that is exchanged there counts
from the next connection on. */}}
{{- define "lifelong.broker" -}}
{{- if eq .part "worker" }}
{{- $secrets := .root.Values.secrets -}}
{{- range $name, $path := dict "brokerCa" "ca.pem" "brokerKeyPassword" "key_password" "saslPassword" "sasl_password" "oauthClientSecret" "oauth_client_secret" }}
{{- with get $secrets $name }}{{ if .name }}
- secret: {name: {{ .name }}, items: [{key: {{ .key }}, path: {{ $path }}}]}
{{- end }}{{ end }}
{{- end }}
{{- with $secrets.brokerTls.name }}
- secret: {name: {{ . }}, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
{{- end }}
{{- end }}
{{- end }}

{{/* What both kinds of pods have; (dict "root" $ "part" "scorer" "of" .Values.scorer "grace" 30) */}}
{{- define "lifelong.pod" -}}
{{- $root := .root -}}
serviceAccountName: {{ include "lifelong.name" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .grace }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "lifelong.selector" $ | nindent 8 }}
{{- end }}
volumes:
  - name: settings
    configMap: {name: {{ include "lifelong.name" $root }}}
  - name: tmp
    emptyDir: {medium: Memory, sizeLimit: 256Mi}
{{- with $root.Values.bundle }}
{{- if .volume }}
  - name: bundle {{- toYaml .volume | nindent 4 }}
{{- else if .url }}
  - name: bundle
    emptyDir: {}
{{- end }}
{{- end }}
{{- if include "lifelong.broker" . }}
  - name: broker
    projected:
      sources: {{- include "lifelong.broker" . | nindent 8 }}
{{- end }}
{{- if eq .part "scorer" }}
{{- with $root.Values.secrets.keys }}
{{- if .name }}
  - name: keys
    secret: {secretName: {{ .name }}, items: [{key: {{ .key }}, path: keys.toml}]}
{{- end }}
{{- end }}
{{- with $root.Values.secrets.tls }}
{{- if .name }}
  - name: tls
    secret: {secretName: {{ .name }}}
{{- end }}
{{- end }}
{{- end }}
{{- with $root.Values.bundle }}
{{- if .url }}
initContainers:
  - name: bundle
    image: {{ include "lifelong.image" $ | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args: [fetch, {{ .url | quote }}, /bundle/current, "--sha256={{ .sha256 }}"]
    securityContext: {{- include "lifelong.confined" $ | nindent 6 }}
    resources:
      requests: {cpu: 100m, memory: 256Mi}
      limits: {memory: 1Gi}
    volumeMounts:
      - {name: bundle, mountPath: /bundle}
      - {name: tmp, mountPath: /tmp}
{{- end }}
{{- end }}
{{- end }}

{{- define "lifelong.confined" -}}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{/* What both kinds of containers have. */}}
{{- define "lifelong.container" -}}
{{- $root := .root -}}
image: {{ include "lifelong.image" . | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
securityContext: {{- include "lifelong.confined" . | nindent 2 }}
resources: {{- toYaml .of.resources | nindent 2 }}
env:
  - {name: LIFELONG_CONFIG, value: /etc/lifelong/settings/lifelong.toml}
{{- /* The image's own default would go before the file. */}}
{{- with $root.Values.secrets.storeUrl }}
{{- if .name }}
  - name: LIFELONG_STORE__URL
    valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
{{- else }}
  - {name: LIFELONG_STORE__URL, value: {{ $root.Values.settings.store.url | quote }}}
{{- end }}
{{- end }}
{{- if and (eq .part "worker") .of.staticMembership }}
  - name: LIFELONG_WORKER__MEMBER
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- end }}
volumeMounts:
  - {name: settings, mountPath: /etc/lifelong/settings, readOnly: true}
  - {name: tmp, mountPath: /tmp}
{{- if or $root.Values.bundle.volume $root.Values.bundle.url }}
  - {name: bundle, mountPath: /bundle, readOnly: true}
{{- end }}
{{- if include "lifelong.broker" . }}
  - {name: broker, mountPath: /etc/lifelong/broker, readOnly: true}
{{- end }}
{{- if eq .part "scorer" }}
{{- if $root.Values.secrets.keys.name }}
  - {name: keys, mountPath: /etc/lifelong/keys, readOnly: true}
{{- end }}
{{- if $root.Values.secrets.tls.name }}
  - {name: tls, mountPath: /etc/lifelong/tls, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{/* Probes: a start may take a minute, where a bundle is large; (dict "live" PATH "ready" PATH "port" NAME "scheme" HTTP) */}}
{{- define "lifelong.probes" -}}
startupProbe:
  httpGet: {path: {{ .live }}, port: {{ .port }}, scheme: {{ .scheme }}}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: {{ .live }}, port: {{ .port }}, scheme: {{ .scheme }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: {{ .ready }}, port: {{ .port }}, scheme: {{ .scheme }}}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}
