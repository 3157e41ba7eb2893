package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// historyWorkers share the clients, two each: a client that hangs is seen beside others that work.
	historyWorkers = 6
	historyClients = 3
	// historyKeys at a time; every historyEpoch there are new ones, so that the search for an order stays short.
	historyKeys  = 4
	historyEpoch = 10 * time.Second
	// historyPause of each worker between two operations: some two hundred operations a second.
	historyPause = 25 * time.Millisecond
	// historyCallLimit ends a call; its outcome is then unknown.
	historyCallLimit = 3 * time.Second
	// historyEndLimit for the last write and its event.
	historyEndLimit = 45 * time.Second
	// keepAliveTime is the shortest that etcd allows.
	keepAliveTime  = 5 * time.Second
	keepAliveLimit = 3 * time.Second
	flushInterval  = 200 * time.Millisecond
	// lastWriter is the number of the client that only does the last write.
	lastWriter = 1_000_000
)

// operation is what a client did, and its answer: no revision means that it was lost.
type operation struct {
	Type      string `json:"type"`
	Client    int    `json:"client"`
	Call      int64  `json:"call"`
	End       int64  `json:"end"`
	Key       string `json:"key"`
	Action    string `json:"action"`
	Value     uint64 `json:"value,omitempty"`
	Expected  int64  `json:"expected,omitempty"`
	Succeeded bool   `json:"succeeded,omitempty"`
	Revision  int64  `json:"revision,omitempty"`
	// Seen and SeenRevision: what a get showed.
	Seen         uint64 `json:"seen,omitempty"`
	SeenRevision int64  `json:"seenRevision,omitempty"`
	Error        string `json:"error,omitempty"`
}

// change is an event of the store.
type change struct {
	Type     string `json:"type"`
	Revision int64  `json:"revision"`
	Key      string `json:"key"`
	Value    uint64 `json:"value,omitempty"`
	Created  bool   `json:"created,omitempty"`
	Deleted  bool   `json:"deleted,omitempty"`
}

// recorder writes lines of JSON.
type recorder struct {
	lock   sync.Mutex
	writer *bufio.Writer
}

func (r *recorder) line(value any) {
	text, err := json.Marshal(value)
	if err != nil {
		fail("cannot encode %v: %v", value, err)
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	if _, err := r.writer.Write(append(text, '\n')); err != nil {
		fail("cannot record: %v", err)
	}
}

func (r *recorder) flush() {
	r.lock.Lock()
	defer r.lock.Unlock()
	if err := r.writer.Flush(); err != nil {
		fail("cannot record: %v", err)
	}
}

// clock gives the time of day that only goes forward.
type clock struct{ start time.Time }

func (c clock) now() int64 { return c.start.UnixNano() + int64(time.Since(c.start)) }

// history writes, reads, swaps and deletes until the process is asked to end (SIGTERM) or -duration is over,
// and records every operation with its answer, and every event of a watch, into the file -output.
// `check-history` of this repository tells whether a linearizable store could have done that.
func history(ctx context.Context, c *check) {
	file, err := os.Create(c.output)
	c.ok("-output", err)
	record := &recorder{writer: bufio.NewWriter(file)}
	times := clock{time.Now()}
	stopping, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	stopping, cancel := context.WithTimeout(stopping, c.duration)
	defer cancel()

	// As the API server of Kubernetes does: without pings a client whose node is gone waits for minutes.
	c.config.DialKeepAliveTime, c.config.DialKeepAliveTimeout = keepAliveTime, keepAliveLimit
	clients := make([]*clientv3.Client, historyClients)
	for i := range clients {
		clients[i], err = clientv3.New(c.config)
		c.ok("client", err)
		defer clients[i].Close()
	}
	c.client = clients[0]
	first := firstRevision(ctx, c)
	fmt.Println("READY")
	// The revision after the last event that is recorded.
	var next atomic.Int64
	next.Store(first)
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	watched := make(chan int, 1)
	go func() { watched <- recordEvents(watching, c, record, &next) }()
	go func() {
		for {
			record.flush()
			time.Sleep(flushInterval)
		}
	}()

	var values atomic.Uint64
	var workers sync.WaitGroup
	for i := range historyWorkers {
		workers.Add(1)
		go func() {
			defer workers.Done()
			w := worker{id: i, client: clients[i%historyClients], prefix: c.prefix, values: &values, clock: times, known: map[string]int64{}}
			for stopping.Err() == nil {
				record.line(w.once(ctx))
				time.Sleep(historyPause)
			}
		}()
	}
	workers.Wait()
	ending, cancelEnd := context.WithTimeout(ctx, historyEndLimit)
	defer cancelEnd()
	last := lastWrite(ending, c, record, times, &values)
	for next.Load() <= last {
		if ending.Err() != nil {
			fail("the watch did not reach the last write, revision %d", last)
		}
		time.Sleep(historyPause)
	}
	stopWatching()
	c.count += <-watched
	record.line(map[string]any{"type": "end"})
	record.flush()
	c.ok("close", file.Close())
}

// firstRevision asks until the store answers.
func firstRevision(ctx context.Context, c *check) int64 {
	for {
		short, cancel := context.WithTimeout(ctx, historyCallLimit)
		answer, err := c.client.Get(short, c.prefix)
		cancel()
		if err == nil {
			return answer.Header.Revision + 1
		}
		if ctx.Err() != nil {
			fail("the store never answered: %v", err)
		}
	}
}

// recordEvents watches everything from a revision on. Returns how many events came.
func recordEvents(ctx context.Context, c *check, record *recorder, next *atomic.Int64) int {
	count := 0
	for {
		channel := c.client.Watch(clientv3.WithRequireLeader(ctx), c.prefix, clientv3.WithPrefix(), clientv3.WithRev(next.Load()))
		for response := range channel {
			if response.CompactRevision != 0 {
				fail("the watch from %d was cancelled: %v", next.Load(), response.Err())
			}
			for _, event := range response.Events {
				value, _ := strconv.ParseUint(string(event.Kv.Value), 10, 64)
				record.line(change{
					Type: "event", Revision: event.Kv.ModRevision, Key: string(event.Kv.Key), Value: value,
					Created: event.IsCreate(), Deleted: event.Type == clientv3.EventTypeDelete,
				})
				next.Store(event.Kv.ModRevision + 1)
				count++
			}
		}
		if ctx.Err() != nil {
			return count
		}
		// With WithRequireLeader the channel ends when there is no leader. It is asked for anew soon.
		time.Sleep(historyPause)
	}
}

// lastWrite has an event by which it is known that the watch is complete. Returns its revision.
func lastWrite(ctx context.Context, c *check, record *recorder, times clock, values *atomic.Uint64) int64 {
	for {
		// Each try has a key of its own: one whose answer was lost must not look like a repetition.
		o := operation{Type: "operation", Client: lastWriter, Action: "put", Value: values.Add(1)}
		o.Key = fmt.Sprintf("%s~%d", c.prefix, o.Value)
		o.Call = times.now()
		short, cancel := context.WithTimeout(ctx, historyCallLimit)
		answer, err := c.client.Put(short, o.Key, strconv.FormatUint(o.Value, 10))
		cancel()
		o.End = times.now()
		if err == nil {
			o.Revision = answer.Header.Revision
			record.line(o)
			return o.Revision
		}
		o.Error = err.Error()
		record.line(o)
		if ctx.Err() != nil {
			fail("the store did not take the last write: %v", err)
		}
	}
}

// worker does one operation after the other.
type worker struct {
	id     int
	client *clientv3.Client
	prefix string
	values *atomic.Uint64
	clock  clock
	// known mod revisions of keys, from gets.
	known map[string]int64
}

func (w *worker) once(ctx context.Context) operation {
	epoch := time.Now().UnixNano() / int64(historyEpoch)
	key := fmt.Sprintf("%s%d/%d", w.prefix, epoch, rand.Intn(historyKeys))
	o := operation{Type: "operation", Client: w.id, Key: key}
	short, cancel := context.WithTimeout(ctx, historyCallLimit)
	defer cancel()
	var err error
	choice := rand.Intn(100)
	o.Call = w.clock.now()
	switch {
	case choice < 45:
		o.Action, o.Value = "put", w.values.Add(1)
		var answer *clientv3.PutResponse
		if answer, err = w.client.Put(short, key, strconv.FormatUint(o.Value, 10)); err == nil {
			o.Revision = answer.Header.Revision
		}
	case choice < 65:
		o.Action, o.Value, o.Expected = "swap", w.values.Add(1), w.known[key]
		var answer *clientv3.TxnResponse
		answer, err = w.client.Txn(short).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", o.Expected)).
			Then(clientv3.OpPut(key, strconv.FormatUint(o.Value, 10))).Commit()
		if err == nil {
			o.Revision, o.Succeeded = answer.Header.Revision, answer.Succeeded
		}
	case choice < 70:
		o.Action = "delete"
		var answer *clientv3.DeleteResponse
		if answer, err = w.client.Delete(short, key); err == nil {
			o.Revision, o.Succeeded = answer.Header.Revision, answer.Deleted == 1
		}
	default:
		o.Action = "get"
		var answer *clientv3.GetResponse
		if answer, err = w.client.Get(short, key); err == nil {
			o.Revision = answer.Header.Revision
			w.known[key] = 0
			if len(answer.Kvs) == 1 {
				o.Seen, _ = strconv.ParseUint(string(answer.Kvs[0].Value), 10, 64)
				o.SeenRevision = answer.Kvs[0].ModRevision
				w.known[key] = o.SeenRevision
			}
		}
	}
	o.End = w.clock.now()
	if err != nil {
		o.Error = err.Error()
	}
	return o
}
