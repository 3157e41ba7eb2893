package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

// recipes runs etcd's recipes: a lock of readers and writers, queues, barriers.
func recipes(ctx context.Context, c *check) {
	readersAndWriters(c)
	queues(c)
	barriers(c)
}

// together runs workers, each with a session of its own, and waits for all of them.
func together(c *check, work func(number int, session *concurrency.Session)) {
	var group sync.WaitGroup
	for number := range workers {
		session := newSession(c, 30)
		group.Go(func() {
			defer session.Close()
			work(number, session)
		})
	}
	group.Wait()
}

func readersAndWriters(c *check) {
	const rounds = 8
	var readers, writers, shared atomic.Int32
	together(c, func(number int, session *concurrency.Session) {
		for round := range rounds {
			mutex := recipe.NewRWMutex(session, c.prefix+"rwmutex")
			if (number+round)%workers == 0 {
				must("lock", mutex.Lock())
				if writers.Add(1) != 1 || readers.Load() != 0 {
					fail("a writer is not alone")
				}
				writers.Add(-1)
				must("unlock", mutex.Unlock())
				continue
			}
			must("lock for reading", mutex.RLock())
			if readers.Add(1) > 1 {
				shared.Add(1)
			}
			if writers.Load() != 0 {
				fail("a reader beside a writer")
			}
			time.Sleep(5 * time.Millisecond)
			readers.Add(-1)
			must("unlock after reading", mutex.RUnlock())
		}
	})
	c.equal("some readers read at the same time", shared.Load() > 0, true)
}

func queues(c *check) {
	queue := recipe.NewQueue(c.client, c.prefix+"queue")
	for number := range 10 {
		c.ok("enqueue", queue.Enqueue(fmt.Sprint(number)))
	}
	for number := range 10 {
		value, err := queue.Dequeue()
		c.ok("dequeue", err)
		c.equal("first in, first out", value, number)
	}
	// Whoever takes from an empty queue waits, and nothing is taken twice.
	var lock sync.Mutex
	taken := map[string]int{}
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for range 5 {
				value, err := queue.Dequeue()
				must("dequeue", err)
				lock.Lock()
				taken[value]++
				lock.Unlock()
			}
		})
	}
	for number := range workers * 5 {
		c.ok("enqueue", queue.Enqueue(fmt.Sprint("item", number)))
	}
	group.Wait()
	c.equal("different items taken", len(taken), workers*5)

	priorities := recipe.NewPriorityQueue(c.client, c.prefix+"priorities")
	for _, priority := range []uint16{3, 1, 2, 1} {
		c.ok("enqueue", priorities.Enqueue(fmt.Sprint(priority), priority))
	}
	for _, priority := range []uint16{1, 1, 2, 3} {
		value, err := priorities.Dequeue()
		c.ok("dequeue", err)
		c.equal("smallest first", value, priority)
	}
}

func barriers(c *check) {
	barrier := recipe.NewBarrier(c.client, c.prefix+"barrier")
	c.ok("hold", barrier.Hold())
	if barrier.Hold() == nil {
		fail("a barrier is held twice")
	}
	var released atomic.Bool
	together(c, func(number int, _ *concurrency.Session) {
		if number == 0 {
			time.Sleep(100 * time.Millisecond)
			released.Store(true)
			must("release", recipe.NewBarrier(c.client, c.prefix+"barrier").Release())
			return
		}
		must("wait", recipe.NewBarrier(c.client, c.prefix+"barrier").Wait())
		if !released.Load() {
			fail("a barrier that is held lets somebody through")
		}
	})
	c.ok("wait at a barrier that is not held", barrier.Wait())

	var entered, left atomic.Int32
	together(c, func(_ int, session *concurrency.Session) {
		double := recipe.NewDoubleBarrier(session, c.prefix+"double", workers)
		entered.Add(1)
		must("enter", double.Enter())
		if entered.Load() != workers {
			fail("entered before all were there")
		}
		left.Add(1)
		must("leave", double.Leave())
		if left.Load() != workers {
			fail("left before all wanted to")
		}
	})
	c.count += 2
}

// must is ok for other goroutines, which may not count.
func must(what string, err error) {
	if err != nil {
		fail("%s: %v", what, err)
	}
}
