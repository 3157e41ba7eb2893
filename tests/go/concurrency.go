package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// workers contend for one lock, one election and one counter.
const workers = 4

func newSession(c *check, ttl int) *concurrency.Session {
	session, err := concurrency.NewSession(c.client, concurrency.WithTTL(ttl))
	c.ok("session", err)
	return session
}

func session(ctx context.Context, c *check) {
	session := newSession(c, 5)
	_, err := c.client.Put(ctx, c.prefix+"a", "", clientv3.WithLease(session.Lease()))
	c.ok("put", err)
	// Longer than the lease's TTL: only its keep-alives let it live.
	select {
	case <-session.Done():
		fail("the session ended by itself")
	case <-time.After(6 * time.Second):
	}
	got, err := c.client.Get(ctx, c.prefix+"a")
	c.ok("get", err)
	c.equal("key of a living session", got.Count, 1)
	c.ok("close", session.Close())
	got, err = c.client.Get(ctx, c.prefix+"a")
	c.ok("get", err)
	c.equal("key of a closed session", got.Count, 0)
}

func mutex(ctx context.Context, c *check) {
	const rounds = 10
	var group sync.WaitGroup
	var lock sync.Mutex
	inside, entered := 0, 0
	for range workers {
		session := newSession(c, 10)
		group.Add(1)
		go func() {
			defer group.Done()
			defer session.Close()
			mutex := concurrency.NewMutex(session, c.prefix+"lock")
			for range rounds {
				if err := mutex.Lock(ctx); err != nil {
					fail("lock: %v", err)
				}
				lock.Lock()
				inside++
				entered++
				if inside != 1 {
					fail("%d hold the lock", inside)
				}
				lock.Unlock()
				// Without an operation etcd would answer from its own state, which may be old.
				owned, err := c.client.Txn(ctx).If(mutex.IsOwner()).Then(clientv3.OpGet(mutex.Key())).Commit()
				if err != nil || !owned.Succeeded {
					fail("the holder is not the owner: %v", err)
				}
				lock.Lock()
				inside--
				lock.Unlock()
				if err := mutex.Unlock(ctx); err != nil {
					fail("unlock: %v", err)
				}
			}
		}()
	}
	group.Wait()
	c.equal("rounds", entered, workers*rounds)

	one, other := newSession(c, 10), newSession(c, 10)
	first, second := concurrency.NewMutex(one, c.prefix+"try"), concurrency.NewMutex(other, c.prefix+"try")
	c.ok("try a free lock", first.TryLock(ctx))
	c.fails("try a held lock", second.TryLock(ctx), concurrency.ErrLocked)
	// A closed session frees its locks.
	c.ok("close", one.Close())
	c.ok("lock after the holder went", second.Lock(ctx))
	c.ok("close", other.Close())
}

func election(ctx context.Context, c *check) {
	observer := concurrency.NewElection(newSession(c, 10), c.prefix+"seat")
	_, err := observer.Leader(ctx)
	c.fails("no leader yet", err, concurrency.ErrElectionNoLeader)
	observing, stop := context.WithCancel(ctx)
	defer stop()
	observed := observer.Observe(observing)

	won := make(chan int)
	resign := make(chan struct{})
	var group sync.WaitGroup
	for worker := range workers {
		session := newSession(c, 10)
		group.Add(1)
		go func() {
			defer group.Done()
			defer session.Close()
			candidate := concurrency.NewElection(session, c.prefix+"seat")
			if err := candidate.Campaign(ctx, fmt.Sprint(worker)); err != nil {
				fail("campaign: %v", err)
			}
			won <- worker
			<-resign
			if err := candidate.Proclaim(ctx, fmt.Sprint(worker, " leaves")); err != nil {
				fail("proclaim: %v", err)
			}
			if err := candidate.Resign(ctx); err != nil {
				fail("resign: %v", err)
			}
		}()
	}
	winners := map[int]bool{}
	for range workers {
		worker := <-won
		winners[worker] = true
		leader, err := observer.Leader(ctx)
		c.ok("leader", err)
		c.equal("leader", string(leader.Kvs[0].Value), fmt.Sprint(worker))
		resign <- struct{}{}
	}
	group.Wait()
	c.equal("winners", len(winners), workers)
	seen := <-observed
	c.equal("the observer saw a leader", len(seen.Kvs), 1)
}

func softwareTransactions(ctx context.Context, c *check) {
	const accounts, transfers, total = 5, 20, 500
	for i := range accounts {
		_, err := c.client.Put(ctx, fmt.Sprintf("%s%d", c.prefix, i), strconv.Itoa(total/accounts))
		c.ok("put", err)
	}
	for _, isolation := range []concurrency.Isolation{
		concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads,
	} {
		var group sync.WaitGroup
		for worker := range workers {
			group.Add(1)
			go func() {
				defer group.Done()
				for i := range transfers {
					from := fmt.Sprintf("%s%d", c.prefix, (worker+i)%accounts)
					to := fmt.Sprintf("%s%d", c.prefix, (worker*3+i*2+1)%accounts)
					if from == to {
						continue
					}
					transfer := func(stm concurrency.STM) error {
						have, _ := strconv.Atoi(stm.Get(from))
						has, _ := strconv.Atoi(stm.Get(to))
						stm.Put(from, strconv.Itoa(have-1))
						stm.Put(to, strconv.Itoa(has+1))
						return nil
					}
					var err error
					for {
						_, err = concurrency.NewSTM(c.client, transfer,
							concurrency.WithIsolation(isolation), concurrency.WithAbortContext(ctx))
						// The second key is read serializably at the first one's revision, and
						// the member that is asked may not have it yet. etcd answers alike.
						if err == nil || err.Error() != rpctypes.ErrFutureRev.Error() {
							break
						}
					}
					if err != nil {
						fail("transfer: %v", err)
					}
				}
			}()
		}
		group.Wait()
		got, err := c.client.Get(ctx, c.prefix, clientv3.WithPrefix())
		c.ok("get", err)
		sum := 0
		for _, pair := range got.Kvs {
			amount, err := strconv.Atoi(string(pair.Value))
			c.ok("amount", err)
			sum += amount
		}
		c.equal("sum of all accounts", sum, total)
	}
}
