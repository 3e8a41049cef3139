{{- define "cypria.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "cypria.selector" -}}
app.kubernetes.io/name: cypria
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "cypria.labels" -}}
{{ include "cypria.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image: {image, tag}, tag being what holds where the image has none. */}}
{{- define "cypria.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .tag | required "an image needs a tag or a digest" }}
{{- end -}}
{{- end -}}

{{- define "cypria.pullSecrets" -}}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "cypria.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "cypria.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Not all on one node, nor in one zone. Servers that elect are not if need be with serversApart alone. */}}
{{- define "cypria.spread" -}}
{{- $apart := and .root.Values.serversApart (has .component (list "nats" "clickhouse" "keeper")) -}}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: {{ ternary "DoNotSchedule" "ScheduleAnyway" (and $apart (eq $key "kubernetes.io/hostname")) }}
  labelSelector:
    matchLabels: {{- include "cypria.selector" $ | nindent 6 }}
{{- end }}
{{- end -}}

{{/* What a values' `pod` adds: nodeSelector, tolerations, affinity, priorityClassName, and annotations elsewhere. */}}
{{- define "cypria.placing" -}}
{{- with omit (. | default dict) "annotations" "extraEnv" }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cypria.natsServers" -}}
{{- if .Values.nats.servers -}}
{{ toJson .Values.nats.servers }}
{{- else -}}
{{- $servers := list -}}
{{- range $i := until (int .Values.nats.replicas) -}}
{{- $servers = append $servers (printf "nats://%s-nats-%d.%s-nats.%s.svc:4222" (include "cypria.name" $) $i (include "cypria.name" $) $.Release.Namespace) -}}
{{- end -}}
{{ toJson $servers }}
{{- end -}}
{{- end -}}

{{/* cypria.yaml: what the values say, under what the chart knows. */}}
{{- define "cypria.config" -}}
{{- $nats := dict "servers" (include "cypria.natsServers" . | fromJsonArray) "replicas" (int .Values.nats.replicas) -}}
{{- if .Values.nats.tls.existingSecret -}}
{{- $tls := dict "ca_file" "/etc/cypria/nats-tls/ca.crt" -}}
{{- if .Values.nats.tls.clientCertificates -}}
{{- $tls = merge $tls (dict "cert_file" "/etc/cypria/nats-tls/tls.crt" "key_file" "/etc/cypria/nats-tls/tls.key") -}}
{{- end -}}
{{- $_ := set $nats "tls" $tls -}}
{{- end -}}
{{- $own := dict "nats" $nats "ops" (dict "drain_seconds" (int .Values.drainSeconds)) -}}
{{ toYaml (mergeOverwrite (deepCopy .Values.config) $own) }}
{{- end -}}

{{/* The cluster is metrics' and provision's to know, who alone have a DSN. */}}
{{- define "cypria.clickhouse" -}}
{{- if .Values.clickhouse.internal }}
- name: CLICKHOUSE_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret }}, key: clickhouse-password}}
- name: CYPRIA_CLICKHOUSE__DSN
  {{- $hosts := list }}
  {{- range $i := until (int .Values.clickhouse.replicas) }}
  {{- $hosts = append $hosts (printf "%s-clickhouse-%d.%s-clickhouse.%s.svc:8123" (include "cypria.name" $) $i (include "cypria.name" $) $.Release.Namespace) }}
  {{- end }}
  value: clickhouse://cypria:$(CLICKHOUSE_PASSWORD)@{{ join "," $hosts }}/cypria
- {name: CYPRIA_CLICKHOUSE__CLUSTER, value: cypria}
{{- else }}
- {name: CYPRIA_CLICKHOUSE__DSN_FILE, value: /etc/cypria/secrets/clickhouse-dsn}
{{- with .Values.clickhouse.cluster }}
- {name: CYPRIA_CLICKHOUSE__CLUSTER, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* The pod of a service: {root, component, service, values, image, pool, port, gpus}. */}}
{{- define "cypria.pod" -}}
{{- $root := .root -}}
{{- $service := .service -}}
{{- $values := .values -}}
{{- $files := list (dict "secret" $root.Values.existingSecret "key" (printf "nats-%s" $service)) -}}
{{- $stores := has $service (list "metrics" "provision") -}}
{{- if and $stores (not $root.Values.clickhouse.internal) -}}
{{- $files = append $files (dict "secret" $root.Values.existingSecret "key" "clickhouse-dsn") -}}
{{- end -}}
{{- range $root.Values.secrets -}}
{{- if has $service .services -}}
{{- $files = append $files (dict "secret" (.secret | default $root.Values.existingSecret) "key" .key "variable" .variable) -}}
{{- end -}}
{{- end -}}
metadata:
  labels: {{- include "cypria.labels" . | nindent 4 }}
  annotations:
    checksum/config: {{ include "cypria.config" $root | sha256sum }}
    {{- with ($values.pod).annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "cypria.name" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext: {{- include "cypria.podSecurity" 10001 | nindent 4 }}
  {{- include "cypria.pullSecrets" $root | nindent 2 }}
  {{- with $values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- if eq $service "provision" }}
  restartPolicy: OnFailure
  {{- else }}
  # what is in flight, the last facts, and a margin
  terminationGracePeriodSeconds: {{ add (int $root.Values.drainSeconds) 25 }}
  topologySpreadConstraints: {{- include "cypria.spread" . | nindent 4 }}
  {{- end }}
  {{- include "cypria.placing" $values.pod | nindent 2 }}
  containers:
    - name: {{ $service }}
      image: {{ .image }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: [{{ $service }}]
      securityContext: {{- include "cypria.containerSecurity" . | nindent 8 }}
      env:
        - {name: APHRODITE_AB_TESTING_CONFIG_PATH, value: /etc/cypria/config/cypria.yaml}
        - {name: CYPRIA_NATS__USER, value: {{ $service }}}
        - {name: CYPRIA_NATS__PASSWORD_FILE, value: /etc/cypria/secrets/nats-{{ $service }}}
        {{- if and (eq $service "router") $root.Values.router.tls.existingSecret }}
        {{- $tls := dict "cert_file" "/etc/cypria/edge-tls/tls.crt" "key_file" "/etc/cypria/edge-tls/tls.key" }}
        {{- if $root.Values.router.tls.clientCertificates }}
        {{- $_ := set $tls "client_ca_file" "/etc/cypria/edge-tls/ca.crt" }}
        {{- end }}
        - {name: CYPRIA_HTTP__TLS, value: {{ toJson $tls | squote }}}
        {{- end }}
        {{- with .pool }}
        - {name: CYPRIA_INFERENCE__POOL, value: {{ . | quote }}}
        {{- end }}
        {{- if $stores }}
        {{- include "cypria.clickhouse" $root | nindent 8 }}
        {{- end }}
        {{- range $files }}
        {{- if .variable }}
        - {name: {{ .variable }}_FILE, value: /etc/cypria/secrets/{{ .key }}}
        {{- end }}
        {{- end }}
        {{- with ($values.pod).extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      resources:
        {{- $resources := deepCopy $values.resources }}
        {{- if .gpus }}
        {{- $resources = mergeOverwrite $resources (dict "limits" (dict $values.gpuResource (int .gpus))) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      {{- if ne $service "provision" }}
      {{- $probe := dict "port" "http" }}
      {{- if and (eq $service "router") $root.Values.router.tls.existingSecret }}
      {{- $_ := set $probe "scheme" "HTTPS" }}
      {{- end }}
      ports:
        - {name: http, containerPort: {{ .port }}}
      startupProbe:
        httpGet: {{- toYaml (merge (dict "path" "/health") $probe) | nindent 10 }}
        periodSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet: {{- toYaml (merge (dict "path" "/health") $probe) | nindent 10 }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {{- toYaml (merge (dict "path" "/ready") $probe) | nindent 10 }}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      {{- if eq $service "router" }}
      # Until nobody sends anything more here: endpoints are withdrawn while this sleeps.
      lifecycle: {preStop: {exec: {command: [sleep, "5"]}}}
      {{- end }}
      {{- end }}
      volumeMounts:
        - {name: config, mountPath: /etc/cypria/config, readOnly: true}
        - {name: secrets, mountPath: /etc/cypria/secrets, readOnly: true}
        - {name: data, mountPath: /var/lib/cypria}
        - {name: tmp, mountPath: /tmp}
        {{- if $root.Values.nats.tls.existingSecret }}
        - {name: nats-tls, mountPath: /etc/cypria/nats-tls, readOnly: true}
        {{- end }}
        {{- if and (eq $service "router") $root.Values.router.tls.existingSecret }}
        - {name: edge-tls, mountPath: /etc/cypria/edge-tls, readOnly: true}
        {{- end }}
        {{- if $values.sharedMemory }}
        - {name: shared-memory, mountPath: /dev/shm}
        {{- end }}
        {{- if $values.modelsClaim }}
        - {name: models, mountPath: /models, readOnly: true}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "cypria.name" $root }}}
    - name: secrets
      projected:
        defaultMode: 0440
        sources:
          {{- range $files }}
          - secret: {name: {{ .secret }}, items: [{key: {{ .key }}, path: {{ .key }}}]}
          {{- end }}
    - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
    {{- if not .claimed }}
    - {name: data, emptyDir: {sizeLimit: {{ $values.cacheSize | default "1Gi" }}}}
    {{- end }}
    {{- with $root.Values.nats.tls.existingSecret }}
    - name: nats-tls
      secret:
        secretName: {{ . }}
        defaultMode: 0440
        items:
          - {key: ca.crt, path: ca.crt}
          {{- if $root.Values.nats.tls.clientCertificates }}
          - {key: tls.crt, path: tls.crt}
          - {key: tls.key, path: tls.key}
          {{- end }}
    {{- end }}
    {{- if and (eq $service "router") $root.Values.router.tls.existingSecret }}
    - name: edge-tls
      secret: {secretName: {{ $root.Values.router.tls.existingSecret }}, defaultMode: 0440}
    {{- end }}
    {{- with $values.sharedMemory }}
    - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: {{ . }}}}
    {{- end }}
    {{- with $values.modelsClaim }}
    - {name: models, persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}}
    {{- end }}
{{- end -}}

{{- define "cypria.natsConfig" -}}
{{- $name := printf "%s-nats" (include "cypria.name" .) -}}
{{- $tls := .Values.nats.tls.existingSecret -}}
listen: 0.0.0.0:4222
http: 0.0.0.0:8222
server_name: $POD_NAME
pid_file: /tmp/nats.pid
max_payload: 12582912
max_pending: 268435456
ping_interval: "20s"
write_deadline: "10s"
lame_duck_grace_period: "5s"
lame_duck_duration: "30s"
jetstream {
  store_dir: /data
  max_file_store: {{ .Values.nats.storage.maxFileStore }}
  {{- if .Values.nats.powerSafe }}
  sync_interval: always
  {{- end }}
}
{{- if $tls }}
{{ include "cypria.natsTls" (dict "verify" .Values.nats.tls.clientCertificates) }}
{{- end }}
{{- if gt (int .Values.nats.replicas) 1 }}
cluster {
  name: {{ $name }}
  listen: 0.0.0.0:6222
  # clients have all addresses, and those of pods are in no certificate
  no_advertise: true
  authorization { user: routes, password: $CYPRIA_ROUTES, timeout: 3 }
  # all servers' addresses, with that password
  routes: $CYPRIA_ROUTE_URLS
  {{- if $tls }}
  {{- include "cypria.natsTls" (dict "verify" true) | nindent 2 }}
  {{- end }}
}
{{- end }}
{{ .Files.Get "files/users.conf" }}
{{- end -}}

{{- define "cypria.clickhouseConfig" -}}
{{- $base := include "cypria.name" . -}}
{{- $values := .Values.clickhouse -}}
server.xml: |
  <clickhouse>
    <listen_host>0.0.0.0</listen_host>
    <logger>
      <level>warning</level>
      <console>true</console>
    </logger>
    <mysql_port remove="remove"/>
    <postgresql_port remove="remove"/>
    <max_server_memory_usage_to_ram_ratio>0.8</max_server_memory_usage_to_ram_ratio>
    <interserver_http_host from_env="POD_ADDRESS"/>
    <interserver_http_credentials>
      <user>interserver</user>
      <password from_env="INTERSERVER_SECRET"/>
    </interserver_http_credentials>
    <macros>
      <shard>1</shard>
      <replica from_env="POD_NAME"/>
    </macros>
    <remote_servers replace="replace">
      <cypria>
        <secret from_env="INTERSERVER_SECRET"/>
        <shard>
          <internal_replication>true</internal_replication>
          {{- range $i := until (int $values.replicas) }}
          <replica><host>{{ $base }}-clickhouse-{{ $i }}.{{ $base }}-clickhouse.{{ $.Release.Namespace }}.svc</host><port>9000</port></replica>
          {{- end }}
        </shard>
      </cypria>
    </remote_servers>
    <zookeeper>
      {{- range $i := until (int $values.keeper.replicas) }}
      <node><host>{{ $base }}-keeper-{{ $i }}.{{ $base }}-keeper.{{ $.Release.Namespace }}.svc</host><port>9181</port></node>
      {{- end }}
    </zookeeper>
    <distributed_ddl><path>/clickhouse/task_queue/ddl</path></distributed_ddl>
  </clickhouse>
keeper.xml: |
  <clickhouse>
    <logger>
      <level>warning</level>
      <console>true</console>
    </logger>
    <listen_host>0.0.0.0</listen_host>
    <keeper_server>
      <tcp_port>9181</tcp_port>
      <server_id from_env="KEEPER_ID"/>
      <log_storage_path>/var/lib/clickhouse-keeper/log</log_storage_path>
      <snapshot_storage_path>/var/lib/clickhouse-keeper/snapshots</snapshot_storage_path>
      <hostname_checks_enabled>false</hostname_checks_enabled>
      <http_control>
        <port>9182</port>
        <readiness><endpoint>/ready</endpoint></readiness>
      </http_control>
      <coordination_settings>
        <operation_timeout_ms>10000</operation_timeout_ms>
        <session_timeout_ms>30000</session_timeout_ms>
        <raft_logs_level>warning</raft_logs_level>
      </coordination_settings>
      <raft_configuration>
        {{- range $i := until (int $values.keeper.replicas) }}
        <server><id>1{{ $i }}</id><hostname>{{ $base }}-keeper-{{ $i }}.{{ $base }}-keeper.{{ $.Release.Namespace }}.svc</hostname><port>9234</port></server>
        {{- end }}
      </raft_configuration>
    </keeper_server>
  </clickhouse>
{{- end -}}

{{- define "cypria.natsTls" -}}
tls {
  cert_file: /etc/nats-tls/tls.crt
  key_file: /etc/nats-tls/tls.key
  ca_file: /etc/nats-tls/ca.crt
  {{- if .verify }}
  verify: true
  {{- end }}
  timeout: 3
}
{{- end -}}

{{/* Parts of network policies: the cluster's name servers, ports, and pods of this release by component. */}}
{{- define "cypria.dns" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
  to: {{- toYaml .Values.networkPolicies.dnsTo | nindent 4 }}
{{- end -}}

{{- define "cypria.ports" -}}
{{- range . }}
- {port: {{ int . }}, protocol: TCP}
{{- end }}
{{- end -}}

{{- define "cypria.peers" -}}
- podSelector:
    matchLabels: {app.kubernetes.io/name: cypria, app.kubernetes.io/instance: {{ .root.Release.Name }}}
    matchExpressions: [{key: app.kubernetes.io/component, operator: In, values: {{ toJson .components }}}]
{{- end -}}
