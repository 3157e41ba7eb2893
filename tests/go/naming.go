package main

import (
	"context"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
)

// service answers health checks at an address of its own.
func service(c *check) (address string, stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	c.ok("listen", err)
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(listener) }()
	return listener.Addr().String(), server.Stop
}

// naming finds services through etcd's gRPC resolver while they come and go.
func naming(ctx context.Context, c *check) {
	first, stopFirst := service(c)
	defer stopFirst()
	second, stopSecond := service(c)
	defer stopSecond()
	name := c.prefix + "service"
	manager, err := endpoints.NewManager(c.client, name)
	c.ok("manager", err)
	c.ok("add", manager.AddEndpoint(ctx, name+"/first", endpoints.Endpoint{Addr: first, Metadata: "one"}))

	builder, err := resolver.NewBuilder(c.client)
	c.ok("builder", err)
	connection, err := grpc.NewClient("etcd:///"+name,
		grpc.WithResolvers(builder),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin":{}}]}`))
	c.ok("connection", err)
	defer connection.Close()
	client := healthpb.NewHealthClient(connection)
	answers := func() string {
		var from peer.Peer
		_, err := client.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&from), grpc.WaitForReady(true))
		c.ok("call", err)
		return from.Addr.String()
	}
	c.equal("the only service", answers(), first)

	// The other one lives as long as its lease.
	lease, err := c.client.Grant(ctx, 60)
	c.ok("grant", err)
	c.ok("add", manager.AddEndpoint(ctx, name+"/second", endpoints.Endpoint{Addr: second}, clientv3.WithLease(lease.ID)))
	until(ctx, c, "the second service answers, too", func() bool { return answers() == second })
	listed, err := manager.List(ctx)
	c.ok("list", err)
	c.equal("listed", len(listed), 2)
	c.equal("address", listed[name+"/first"].Addr, first)
	c.equal("metadata", listed[name+"/first"].Metadata, "one")

	c.ok("delete", manager.DeleteEndpoint(ctx, name+"/first"))
	until(ctx, c, "only the second service is left", func() bool {
		return answers() == second && answers() == second && answers() == second
	})
	// In one transaction: the first comes back, the second goes.
	c.ok("update", manager.Update(ctx, []*endpoints.UpdateWithOpts{
		endpoints.NewAddUpdateOpts(name+"/first", endpoints.Endpoint{Addr: first}),
		endpoints.NewDeleteUpdateOpts(name + "/second"),
	}))
	until(ctx, c, "only the first service is left", func() bool {
		return answers() == first && answers() == first && answers() == first
	})
	_, err = c.client.Revoke(ctx, lease.ID)
	c.ok("revoke", err)
	c.ok("delete", manager.DeleteEndpoint(ctx, name+"/first"))
}

// until waits for something that another goroutine brings about.
func until(ctx context.Context, c *check, what string, holds func() bool) {
	c.count++
	for !holds() {
		select {
		case <-ctx.Done():
			fail("in vain: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
