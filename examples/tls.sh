#!/usr/bin/env bash
# Makes an authority and certificates with openssl, starts a member that serves clients and members by
# TLS only, writes and reads with etcdctl, replaces the server's certificate while it runs, and stops.
#
#   METASTORE   the server (default: target/release/metastore of this tree)
#   ETCDCTL     etcdctl (default: from the path)
#   PORT        the client port; the next one is for members (default: 12379)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
metastore=${METASTORE:-$here/../target/release/metastore}
etcdctl=${ETCDCTL:-etcdctl}
port=${PORT:-12379}
peer_port=$((port + 1))

folder=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server"; wait; rm -rf "$folder"' EXIT
cd "$folder"

echo "== an authority"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
  -subj "/CN=example authority" -keyout ca-key.pem -out ca.pem 2>/dev/null

# issue NAME: a certificate for 127.0.0.1 and localhost, for servers and clients.
issue() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
    -subj "/CN=$1" -keyout "$1-key.new" -out "$1.csr" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 365 \
    -extfile <(echo "subjectAltName=IP:127.0.0.1,DNS:localhost
extendedKeyUsage=serverAuth,clientAuth") -out "$1.new" 2>/dev/null
  # A rename replaces a file in one step: nobody reads half a certificate.
  mv "$1.new" "$1.pem"
  mv "$1-key.new" "$1-key.pem"
}

echo "== certificates for the server, for members and for a client"
issue server
issue peer
issue client

echo "== a member that speaks TLS only, and only to those who have a certificate"
"$metastore" --name tls --data-dir "$folder/data" \
  --listen-client-urls "https://127.0.0.1:$port" --advertise-client-urls "https://127.0.0.1:$port" \
  --cert-file server.pem --key-file server-key.pem \
  --client-cert-auth --trusted-ca-file ca.pem \
  --listen-peer-urls "https://127.0.0.1:$peer_port" \
  --initial-advertise-peer-urls "https://127.0.0.1:$peer_port" \
  --initial-cluster "tls=https://127.0.0.1:$peer_port" \
  --peer-cert-file peer.pem --peer-key-file peer-key.pem \
  --peer-client-cert-auth --peer-trusted-ca-file ca.pem \
  >server.log 2>&1 &
server=$!

export ETCDCTL_ENDPOINTS=https://127.0.0.1:$port
export ETCDCTL_CACERT=ca.pem ETCDCTL_CERT=client.pem ETCDCTL_KEY=client-key.pem
for _ in $(seq 100); do
  grep -q "ready to serve client requests" server.log && break
  kill -0 "$server" || { cat server.log; exit 1; }
  sleep 0.2
done

echo "== a client with a certificate"
"$etcdctl" put greeting hello
"$etcdctl" get greeting

echo "== a client without one is refused, and the server says why"
if ETCDCTL_CERT='' ETCDCTL_KEY='' "$etcdctl" --command-timeout=2s get greeting 2>/dev/null; then
  echo "it was served" >&2
  exit 1
fi
grep -m 1 "rejected connection on client endpoint" server.log

echo "== a new certificate for the server, without a restart"
before=$(openssl x509 -in server.pem -noout -serial)
issue server
"$etcdctl" get greeting
shown=$(openssl s_client -connect "127.0.0.1:$port" -CAfile ca.pem \
  -cert client.pem -key client-key.pem </dev/null 2>/dev/null | openssl x509 -noout -serial)
[[ $shown != "$before" ]]
echo "it was $before and is $shown"
