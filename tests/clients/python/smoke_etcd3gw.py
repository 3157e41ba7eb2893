"""etcd3gw (JSON gateway; what OpenStack uses). Argument: host:port."""

import sys
import threading

import etcd3gw

host, port = sys.argv[1].split(":")
client = etcd3gw.client(host=host, port=int(port), timeout=30)

assert client.status()["version"] == "3.7.3"
assert client.members()
assert client.put("smoke/key", "value")
assert client.get("smoke/key") == [b"value"]
assert client.create("smoke/new", "1") and not client.create("smoke/new", "2")
assert client.replace("smoke/new", "1", "3")
assert [value for value, _ in client.get_prefix("smoke/")] == [b"value", b"3"]

lease = client.lease(ttl=30)
client.put("smoke/leased", "x", lease=lease)
assert 0 < lease.ttl() <= 30
assert lease.refresh() == 30
assert lease.keys() == [b"smoke/leased"]
lease.revoke()
assert client.get("smoke/leased") == []

with client.lock("smoke-lock", ttl=30) as lock:
    assert lock.is_acquired()

events, cancel = client.watch_prefix("smoke/watched/")
threading.Timer(0.2, lambda: client.put("smoke/watched/1", "x")).start()
event = next(iter(events))
assert event["kv"]["key"] == b"smoke/watched/1", event
cancel()

assert client.delete_prefix("smoke/")
assert client.get("smoke/key") == []
print("ok")
