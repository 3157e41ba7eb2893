package main

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func leases(ctx context.Context, c *check) {
	granted, err := c.client.Grant(ctx, 60)
	c.ok("grant", err)
	c.equal("TTL", granted.TTL, 60)
	key := c.prefix + "a"
	_, err = c.client.Put(ctx, key, "1", clientv3.WithLease(granted.ID))
	c.ok("put", err)
	left, err := c.client.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys())
	c.ok("time to live", err)
	c.equal("attached keys", len(left.Keys), 1)
	once, err := c.client.KeepAliveOnce(ctx, granted.ID)
	c.ok("keep alive once", err)
	c.equal("TTL after keep-alive", once.TTL, 60)
	list, err := c.client.Leases(ctx)
	c.ok("list", err)
	c.equal("listed", len(list.Leases) > 0, true)
	_, err = c.client.Revoke(ctx, granted.ID)
	c.ok("revoke", err)
	got, err := c.client.Get(ctx, key)
	c.ok("get", err)
	c.equal("keys after revoke", got.Count, 0)

	_, err = c.client.Revoke(ctx, granted.ID)
	c.fails("revoke twice", err, rpctypes.ErrLeaseNotFound)
	_, err = c.client.KeepAliveOnce(ctx, granted.ID)
	c.fails("keep a revoked lease alive", err, rpctypes.ErrLeaseNotFound)
	left, err = c.client.TimeToLive(ctx, granted.ID)
	c.ok("time to live of a revoked lease", err)
	c.equal("TTL of a revoked lease", left.TTL, -1)

	// A lease that nobody renews ends: its keys go in one revision.
	short, err := c.client.Grant(ctx, 2)
	c.ok("grant", err)
	watch := c.client.Watch(ctx, c.prefix, clientv3.WithPrefix(), clientv3.WithFilterPut())
	for _, name := range []string{"x", "y", "z"} {
		_, err = c.client.Put(ctx, c.prefix+name, "", clientv3.WithLease(short.ID))
		c.ok("put", err)
	}
	response := <-watch
	c.equal("deletes in one response", len(response.Events), 3)
	for i, name := range []string{"x", "y", "z"} {
		c.equal("deleted key", string(response.Events[i].Kv.Key), c.prefix+name)
		c.equal("revision", response.Events[i].Kv.ModRevision, response.Events[0].Kv.ModRevision)
	}
}

// keepAlive renews leases while the caller restarts members: none may end.
func keepAlive(ctx context.Context, c *check) {
	const leaseCount = 5
	var channels []<-chan *clientv3.LeaseKeepAliveResponse
	var ids []clientv3.LeaseID
	for i := range leaseCount {
		granted, err := c.client.Grant(ctx, 10)
		c.ok("grant", err)
		_, err = c.client.Put(ctx, fmt.Sprintf("%s%d", c.prefix, i), "", clientv3.WithLease(granted.ID))
		c.ok("put", err)
		channel, err := c.client.KeepAlive(ctx, granted.ID)
		c.ok("keep alive", err)
		channels, ids = append(channels, channel), append(ids, granted.ID)
	}
	fmt.Println("READY")
	until := time.After(c.duration)
	renewals := 0
	for running := true; running; {
		for i, channel := range channels {
			select {
			case answer, open := <-channel:
				if !open {
					fail("lease %d ended", ids[i])
				}
				c.equal("TTL", answer.TTL, 10)
				renewals++
			case <-until:
				running = false
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	c.equal("some renewals", renewals > leaseCount, true)
	for i := range leaseCount {
		got, err := c.client.Get(ctx, fmt.Sprintf("%s%d", c.prefix, i))
		c.ok("get", err)
		c.equal("the key of a renewed lease", got.Count, 1)
	}
}
