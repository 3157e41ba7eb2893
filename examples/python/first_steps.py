"""Keys, a transaction, a lease and a watch, with aetcd (`pip install aetcd`).

Against a member on port 2379 (`make run`); ETCDCTL_ENDPOINTS names another one.
"""

import asyncio
import os
from urllib.parse import urlsplit

import aetcd

PREFIX = b"examples/python/"


async def main():
    endpoint = urlsplit(os.environ.get("ETCDCTL_ENDPOINTS", "http://127.0.0.1:2379"))
    async with aetcd.Client(host=endpoint.hostname, port=endpoint.port) as client:
        await client.delete_prefix(PREFIX)

        print("== a key is written and read")
        await client.put(PREFIX + b"colour", b"blue")
        pair = await client.get(PREFIX + b"colour")
        print(pair.key.decode(), "=", pair.value.decode())

        print("== it is changed if it still has the value that we know")
        assert await client.replace(PREFIX + b"colour", b"blue", b"green")
        assert not await client.replace(PREFIX + b"colour", b"blue", b"red")

        print("== a key under a lease ends with it")
        lease = await client.lease(30)
        await client.put(PREFIX + b"leased", b"x", lease=lease)
        await lease.revoke()
        assert await client.get(PREFIX + b"leased") is None

        print("== a watch tells of what changes")
        watch = await client.watch_prefix(PREFIX)
        await client.put(PREFIX + b"colour", b"white")
        async for event in watch:
            print(event.kind, event.kv.key.decode(), event.kv.value.decode())
            break
        await watch.cancel()


asyncio.run(asyncio.wait_for(main(), 60))
