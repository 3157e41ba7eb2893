package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchWithResume writes and watches while the caller restarts members. The client resumes a broken
// watch by itself; what it then shows must be the whole history once, in order.
func watchWithResume(ctx context.Context, c *check) {
	first, err := c.client.Put(ctx, c.prefix+"start", "")
	c.ok("put", err)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	channel := c.client.Watch(clientv3.WithRequireLeader(watching), c.prefix, clientv3.WithPrefix(),
		clientv3.WithRev(first.Header.Revision), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	created := <-channel
	c.equal("created", created.Created, true)

	var events []*clientv3.Event
	var lock sync.Mutex
	failed := make(chan error, 1)
	go func() {
		for {
			for response := range channel {
				if response.CompactRevision != 0 {
					failed <- fmt.Errorf("cancelled: %w", response.Err())
					return
				}
				lock.Lock()
				events = append(events, response.Events...)
				lock.Unlock()
			}
			if watching.Err() != nil {
				return
			}
			// With WithRequireLeader the channel ends when there is no leader: go on after the last.
			next := first.Header.Revision
			lock.Lock()
			if len(events) > 0 {
				next = events[len(events)-1].Kv.ModRevision + 1
			}
			lock.Unlock()
			channel = c.client.Watch(clientv3.WithRequireLeader(watching), c.prefix,
				clientv3.WithPrefix(), clientv3.WithRev(next), clientv3.WithPrevKV())
		}
	}()

	fmt.Println("READY")
	acknowledged := map[int64]string{}
	unknown := 0
	until := time.Now().Add(c.duration)
	for i := 0; time.Now().Before(until); i++ {
		value := fmt.Sprint(i)
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		put, err := c.client.Put(short, fmt.Sprintf("%s%d", c.prefix, i%10), value)
		cancel()
		if err == nil {
			acknowledged[put.Header.Revision] = value
		} else {
			unknown++
		}
	}
	c.equal("some writes were acknowledged", len(acknowledged) > 0, true)

	var last *clientv3.PutResponse
	for {
		if last, err = c.client.Put(ctx, c.prefix+"end", ""); err == nil {
			break
		}
		if ctx.Err() != nil {
			fail("the store did not come back: %v", err)
		}
	}
	for {
		lock.Lock()
		done := len(events) > 0 && events[len(events)-1].Kv.ModRevision >= last.Header.Revision
		lock.Unlock()
		if done {
			break
		}
		select {
		case err := <-failed:
			fail("watch: %v", err)
		case <-ctx.Done():
			fail("the watch did not reach revision %d", last.Header.Revision)
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop()

	lock.Lock()
	defer lock.Unlock()
	previous := first.Header.Revision - 1
	values := map[string]string{}
	for _, event := range events {
		c.equal("revisions without gap", event.Kv.ModRevision, previous+1)
		previous = event.Kv.ModRevision
		if value, ok := acknowledged[event.Kv.ModRevision]; ok {
			c.equal("value of an acknowledged write", string(event.Kv.Value), value)
			delete(acknowledged, event.Kv.ModRevision)
		}
		before, existed := values[string(event.Kv.Key)]
		c.equal("is create", event.IsCreate(), !existed)
		if existed {
			c.equal("previous value", string(event.PrevKv.Value), before)
		}
		values[string(event.Kv.Key)] = string(event.Kv.Value)
	}
	c.equal("acknowledged writes that the watch missed", len(acknowledged), 0)
}
