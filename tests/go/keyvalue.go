package main

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func keyValue(ctx context.Context, c *check) {
	key := c.prefix + "a"
	put, err := c.client.Put(ctx, key, "1")
	c.ok("put", err)
	first := put.Header.Revision
	put, err = c.client.Put(ctx, key, "2", clientv3.WithPrevKV())
	c.ok("put", err)
	c.equal("previous value", string(put.PrevKv.Value), "1")
	c.equal("revision", put.Header.Revision, first+1)

	got, err := c.client.Get(ctx, key)
	c.ok("get", err)
	c.equal("count", got.Count, 1)
	c.equal("version", got.Kvs[0].Version, 2)
	c.equal("create revision", got.Kvs[0].CreateRevision, first)
	got, err = c.client.Get(ctx, key, clientv3.WithRev(first))
	c.ok("get of the past", err)
	c.equal("past value", string(got.Kvs[0].Value), "1")
	c.equal("header of a read of the past", got.Header.Revision, first+1)

	for i := range 25 {
		_, err = c.client.Put(ctx, fmt.Sprintf("%slist/%02d", c.prefix, i), fmt.Sprint(25-i))
		c.ok("put", err)
	}
	pages, start, seen := 0, c.prefix+"list/", 0
	end := clientv3.GetPrefixRangeEnd(start)
	var pinned int64
	for {
		got, err = c.client.Get(ctx, start, clientv3.WithRange(end), clientv3.WithLimit(10), clientv3.WithRev(pinned))
		c.ok("page", err)
		c.equal("count of a page", got.Count, 25-seen)
		pinned, pages, seen = got.Header.Revision, pages+1, seen+len(got.Kvs)
		if !got.More {
			break
		}
		start = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
	}
	c.equal("pages", pages, 3)
	got, err = c.client.Get(ctx, c.prefix+"list/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend), clientv3.WithLimit(1))
	c.ok("sorted", err)
	c.equal("smallest value", string(got.Kvs[0].Value), "1")
	got, err = c.client.Get(ctx, c.prefix+"list/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	c.ok("count only", err)
	c.equal("count only", got.Count, 25)
	got, err = c.client.Get(ctx, c.prefix+"list/", clientv3.WithPrefix(), clientv3.WithSerializable(), clientv3.WithKeysOnly())
	c.ok("serializable", err)

	deleted, err := c.client.Delete(ctx, c.prefix+"list/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	c.ok("delete", err)
	c.equal("deleted", deleted.Deleted, 25)
	c.equal("previous pairs", len(deleted.PrevKvs), 25)

	_, err = c.client.Put(ctx, "", "x")
	c.fails("empty key", err, rpctypes.ErrEmptyKey)
	_, err = c.client.Get(ctx, key, clientv3.WithRev(1<<40))
	c.fails("future revision", err, rpctypes.ErrFutureRev)
	_, err = c.client.Compact(ctx, first+1, clientv3.WithCompactPhysical())
	c.ok("compact", err)
	_, err = c.client.Get(ctx, key, clientv3.WithRev(first))
	c.fails("compacted revision", err, rpctypes.ErrCompacted)
}

func transactions(ctx context.Context, c *check) {
	key := c.prefix + "a"
	created, err := c.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, "1"), clientv3.OpGet(key)).
		Else(clientv3.OpGet(key)).Commit()
	c.ok("create", err)
	c.equal("created", created.Succeeded, true)
	c.equal("value in the transaction", string(created.Responses[1].GetResponseRange().Kvs[0].Value), "1")
	again, err := c.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, "2")).
		Else(clientv3.OpGet(key)).Commit()
	c.ok("create again", err)
	c.equal("created again", again.Succeeded, false)
	c.equal("winner", string(again.Responses[0].GetResponseRange().Kvs[0].Value), "1")

	swapped, err := c.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", created.Header.Revision)).
		Then(clientv3.OpPut(key, "3"), clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", "1")},
			[]clientv3.Op{clientv3.OpPut(key+"/nested", "yes")},
			[]clientv3.Op{clientv3.OpPut(key+"/nested", "no")})).Commit()
	c.ok("swap", err)
	c.equal("swapped", swapped.Succeeded, true)
	nested, err := c.client.Get(ctx, key+"/nested")
	c.ok("get", err)
	c.equal("nested compares see the state before", string(nested.Kvs[0].Value), "yes")
	c.equal("one revision for all", nested.Kvs[0].ModRevision, swapped.Header.Revision)

	_, err = c.client.Txn(ctx).Then(clientv3.OpPut(key, "1"), clientv3.OpPut(key, "2")).Commit()
	c.fails("duplicate key", err, rpctypes.ErrDuplicateKey)
	operations := make([]clientv3.Op, 129)
	for i := range operations {
		operations[i] = clientv3.OpGet(key)
	}
	_, err = c.client.Txn(ctx).Then(operations...).Commit()
	c.fails("too many operations", err, rpctypes.ErrTooManyOps)
}

func members(ctx context.Context, c *check) {
	list, err := c.client.MemberList(ctx)
	c.ok("member list", err)
	for _, member := range list.Members {
		c.equal("client URLs of "+member.Name, len(member.ClientURLs), 1)
		status, err := c.client.Status(ctx, member.ClientURLs[0])
		c.ok("status", err)
		c.equal("cluster", status.Header.ClusterId, list.Header.ClusterId)
		c.equal("member", status.Header.MemberId, member.ID)
		c.equal("has a leader", status.Leader != 0, true)
		hash, err := c.client.HashKV(ctx, member.ClientURLs[0], 0)
		c.ok("hash", err)
		c.equal("has a hash", hash.Hash != 0, true)
	}
	c.ok("sync", c.client.Sync(ctx))
	c.equal("endpoints after sync", len(c.client.Endpoints()), len(list.Members))
}
