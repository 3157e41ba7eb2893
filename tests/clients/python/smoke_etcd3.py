"""etcd3 (gRPC; the oldest Python client, in its maintained form etcd-sdk-python). Argument: host:port."""

import sys
import threading

import pyetcd

host, port = sys.argv[1].split(":")
client = pyetcd.client(host=host, port=int(port), timeout=30)

assert client.status().version == "3.7.3"
assert [member.name for member in client.members]
client.put("smoke/key", "value")
assert client.get("smoke/key")[0] == b"value"
assert not client.put_if_not_exists("smoke/key", "other")
assert client.replace("smoke/key", "value", "second")
succeeded, responses = client.transaction(
    compare=[client.transactions.value("smoke/key") == "second", client.transactions.version("smoke/key") > 1],
    success=[client.transactions.put("smoke/other", "1"), client.transactions.get("smoke/key")],
    failure=[],
)
assert succeeded and len(responses) == 2, responses

lease = client.lease(30)
client.put("smoke/leased", "x", lease=lease)
assert lease.granted_ttl == 30 and list(lease.keys) == [b"smoke/leased"]
lease.revoke()
assert client.get("smoke/leased")[0] is None

events, cancel = client.watch_prefix("smoke/watched/")
threading.Timer(0.2, lambda: client.put("smoke/watched/1", "x")).start()
assert next(iter(events)).key == b"smoke/watched/1"
cancel()

with client.lock("smoke-lock", ttl=30) as lock:
    assert lock.is_acquired()
client.delete_prefix("smoke/")
assert client.hash() != 0
assert list(client.list_alarms()) == []
print("ok")
