package main

import (
	"context"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// foreign is an encoding that no server of etcd knows.
const foreign = "foreign"

type foreignCompressor struct{ encoding.Compressor }

func (foreignCompressor) Name() string { return foreign }

func init() {
	encoding.RegisterCompressor(foreignCompressor{encoding.GetCompressor(gzip.Name)})
}

// wire checks what lies below the services: encodings of messages, unknown methods, the health service.
func wire(ctx context.Context, c *check) {
	connection := c.client.ActiveConnection()
	compression(ctx, c, pb.NewKVClient(connection), pb.NewWatchClient(connection))

	none := &pb.RangeRequest{}
	for path, text := range map[string]string{
		"/etcdserverpb.KV/Nope":          "unknown method Nope for service etcdserverpb.KV",
		"/etcdserverpb.Watch/Nope":       "unknown method Nope for service etcdserverpb.Watch",
		"/etcdserverpb.Maintenance/Nope": "unknown method Nope for service etcdserverpb.Maintenance",
		"/v3lockpb.Lock/Nope":            "unknown method Nope for service v3lockpb.Lock",
		"/nope.KV/Range":                 "unknown service nope.KV",
	} {
		err := connection.Invoke(ctx, path, none, &pb.RangeResponse{})
		c.equal(path, err, "rpc error: code = Unimplemented desc = "+text)
	}

	health := healthpb.NewHealthClient(connection)
	checked, err := health.Check(ctx, &healthpb.HealthCheckRequest{})
	c.ok("health", err)
	c.equal("health", checked.Status, healthpb.HealthCheckResponse_SERVING)
	_, err = health.Check(ctx, &healthpb.HealthCheckRequest{Service: "etcdserverpb.KV"})
	c.equal("health of a service", err, "rpc error: code = NotFound desc = unknown service")
	listed, err := health.List(ctx, &healthpb.HealthListRequest{})
	c.ok("list of healths", err)
	c.equal("listed healths", len(listed.Statuses), 1)
	c.equal("listed health", listed.Statuses[""].GetStatus(), healthpb.HealthCheckResponse_SERVING)
	for service, status := range map[string]healthpb.HealthCheckResponse_ServingStatus{
		"":                healthpb.HealthCheckResponse_SERVING,
		"etcdserverpb.KV": healthpb.HealthCheckResponse_SERVICE_UNKNOWN,
	} {
		watching, cancel := context.WithCancel(ctx)
		stream, err := health.Watch(watching, &healthpb.HealthCheckRequest{Service: service})
		c.ok("watch of health", err)
		answer, err := stream.Recv()
		c.ok("watched health", err)
		c.equal("watched health of "+service, answer.Status, status)
		ended := make(chan struct{})
		go func() {
			_, _ = stream.Recv()
			close(ended)
		}()
		select {
		case <-ended:
			fail("the watch of the health of %q ended", service)
		case <-time.After(100 * time.Millisecond):
		}
		cancel()
	}
}

func compression(ctx context.Context, c *check, kv pb.KVClient, watch pb.WatchClient) {
	packed := grpc.UseCompressor(gzip.Name)
	key, value := []byte(c.prefix+"a"), []byte(strings.Repeat("x", 100_000))
	stream, err := watch.Watch(ctx, packed)
	c.ok("compressed watch", err)
	create := &pb.WatchCreateRequest{Key: key}
	c.ok("create", stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}))
	answer, err := stream.Recv()
	c.ok("created", err)
	c.equal("created", answer.Created, true)

	_, err = kv.Put(ctx, &pb.PutRequest{Key: key, Value: value}, packed)
	c.ok("compressed put", err)
	got, err := kv.Range(ctx, &pb.RangeRequest{Key: key}, packed)
	c.ok("compressed get", err)
	c.equal("value of a compressed get", string(got.Kvs[0].Value), string(value))
	chunks, err := kv.RangeStream(ctx, &pb.RangeRequest{Key: key}, packed)
	c.ok("compressed stream", err)
	chunk, err := chunks.Recv()
	c.ok("compressed chunk", err)
	c.equal("value of a compressed chunk", string(chunk.RangeResponse.Kvs[0].Value), string(value))
	answer, err = stream.Recv()
	c.ok("compressed event", err)
	c.equal("value of a compressed event", string(answer.Events[0].Kv.Value), string(value))

	_, err = kv.Put(ctx, &pb.PutRequest{}, packed)
	c.equal("error of a compressed call", err, "rpc error: code = InvalidArgument desc = etcdserver: key is not provided")
	// 2 MiB are received at most, with the allowance for what surrounds a request of 1.5 MiB.
	bomb := []byte(strings.Repeat("x", 3<<20))
	_, err = kv.Put(ctx, &pb.PutRequest{Key: key, Value: bomb}, packed)
	c.equal("too much of it", err, "rpc error: code = ResourceExhausted desc = grpc: received message after decompression larger than max 2097152")
	_, err = kv.Put(ctx, &pb.PutRequest{Key: key}, grpc.UseCompressor(foreign))
	c.equal("foreign encoding", err, `rpc error: code = Unimplemented desc = grpc: Decompressor is not installed for grpc-encoding "foreign"`)
}
