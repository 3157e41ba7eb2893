// Keys, a transaction, a lock, and a watch that survives a compaction, with etcd's Go client.
//
// Against a member on port 2379 (`make run`); ETCDCTL_ENDPOINTS names another one:
// `cd examples/go && go run -mod=mod .`
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const prefix = "examples/go/"

func main() {
	endpoint := os.Getenv("ETCDCTL_ENDPOINTS")
	if endpoint == "" {
		endpoint = "http://127.0.0.1:2379"
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
	check(err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err = client.Delete(ctx, prefix, clientv3.WithPrefix())
	check(err)

	fmt.Println("== a key is written and read")
	colour := prefix + "colour"
	_, err = client.Put(ctx, colour, "blue")
	check(err)
	found, err := client.Get(ctx, colour)
	check(err)
	fmt.Printf("%s = %s\n", found.Kvs[0].Key, found.Kvs[0].Value)

	fmt.Println("== it is changed if nobody else has changed it")
	change := func() bool {
		unchanged := clientv3.Compare(clientv3.ModRevision(colour), "=", found.Kvs[0].ModRevision)
		answer, err := client.Txn(ctx).If(unchanged).Then(clientv3.OpPut(colour, "green")).Commit()
		check(err)
		return answer.Succeeded
	}
	// The second time somebody, we, has changed it.
	if !change() || change() {
		log.Fatal("the comparison is wrong")
	}

	fmt.Println("== one process at a time holds a lock, and loses it when its session ends")
	session, err := concurrency.NewSession(client, concurrency.WithTTL(30))
	check(err)
	lock := concurrency.NewMutex(session, prefix+"lock")
	check(lock.Lock(ctx))
	fmt.Println("locked")
	check(lock.Unlock(ctx))
	check(session.Close())

	fmt.Println("== a watch that comes too late for its revision begins again with a list")
	last, err := client.Put(ctx, colour, "red")
	check(err)
	_, err = client.Compact(ctx, last.Header.Revision)
	check(err)
	_, err = client.Put(ctx, colour, "white")
	check(err)
	follow(ctx, client, 1)
}

// follow follows the keys from a revision on until the colour is black. Where the history is compacted already, it
// takes the keys as they are now and goes on from there.
func follow(ctx context.Context, client *clientv3.Client, revision int64) {
	for answer := range client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(revision)) {
		if answer.CompactRevision > 0 {
			fmt.Println("compacted up to", answer.CompactRevision)
			list, err := client.Get(ctx, prefix, clientv3.WithPrefix())
			check(err)
			for _, pair := range list.Kvs {
				fmt.Printf("now %s = %s\n", pair.Key, pair.Value)
			}
			// Something changes after the list.
			_, err = client.Put(ctx, prefix+"colour", "black")
			check(err)
			follow(ctx, client, list.Header.Revision+1)
			return
		}
		check(answer.Err())
		for _, event := range answer.Events {
			fmt.Printf("%s %s\n", event.Type, event.Kv.Value)
			if string(event.Kv.Value) == "black" {
				return
			}
		}
	}
	log.Fatal("the watch ended")
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
