"""aetcd (asyncio, gRPC): every service that the library offers, once. Argument: host:port."""

import asyncio
import sys

import aetcd


async def main(host, port):
    async with aetcd.Client(host=host, port=port) as client:
        await client.put(b"smoke/key", b"value")
        pair = await client.get(b"smoke/key")
        assert pair.value == b"value" and pair.version == 1, pair
        assert await client.replace(b"smoke/key", b"value", b"second")
        assert not await client.replace(b"smoke/key", b"value", b"third")

        lease = await client.lease(30)
        await client.put(b"smoke/leased", b"x", lease=lease)
        assert 0 < await lease.remaining_ttl() <= 30
        assert (await lease.refresh()).TTL == 30
        await lease.revoke()
        assert await client.get(b"smoke/leased") is None

        watch = await client.watch_prefix(b"smoke/watched/")
        for number in range(3):
            await client.put(b"smoke/watched/%d" % number, b"x")
        seen = []
        async for event in watch:
            seen.append(event.kv.key)
            if len(seen) == 3:
                break
        assert seen == [b"smoke/watched/%d" % number for number in range(3)], seen
        await watch.cancel()

        deleted = await client.delete_range(b"smoke/", b"smoke0")
        assert deleted.deleted == 4, deleted
        status = await client.status()
        assert status.version == "3.7.3", status.version
        assert [member async for member in client.members()]


host, port = sys.argv[1].split(":")
asyncio.run(asyncio.wait_for(main(host, int(port)), 60))
print("ok")
