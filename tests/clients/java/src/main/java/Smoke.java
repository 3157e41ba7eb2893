import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.kv.TxnResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/** jetcd: keys, transactions, watch, lease, lock, election, maintenance. Argument: host:port. */
public final class Smoke {
  private static ByteSequence bytes(String text) {
    return ByteSequence.from(text, StandardCharsets.UTF_8);
  }

  private static <T> T get(CompletableFuture<T> future) throws Exception {
    return future.get(30, TimeUnit.SECONDS);
  }

  private static void check(boolean fact, String what) {
    if (!fact) {
      throw new AssertionError(what);
    }
  }

  public static void main(String[] arguments) throws Exception {
    try (Client client = Client.builder().endpoints("http://" + arguments[0]).build()) {
      var keys = client.getKVClient();
      get(keys.put(bytes("smoke/key"), bytes("value")));
      check(get(keys.get(bytes("smoke/key"))).getKvs().get(0).getValue().equals(bytes("value")), "get");
      TxnResponse outcome =
          get(
              keys.txn()
                  .If(new Cmp(bytes("smoke/key"), Cmp.Op.EQUAL, CmpTarget.value(bytes("value"))))
                  .Then(Op.put(bytes("smoke/key"), bytes("second"), PutOption.DEFAULT))
                  .commit());
      check(outcome.isSucceeded(), "transaction");

      CompletableFuture<String> seen = new CompletableFuture<>();
      try (Watch.Watcher watcher =
          client
              .getWatchClient()
              .watch(
                  bytes("smoke/watched/"),
                  WatchOption.builder().isPrefix(true).withRevision(outcome.getHeader().getRevision()).build(),
                  response -> seen.complete(response.getEvents().get(0).getKeyValue().getKey().toString()))) {
        get(keys.put(bytes("smoke/watched/1"), bytes("x")));
        check(get(seen).equals("smoke/watched/1"), "watch");
      }

      long lease = get(client.getLeaseClient().grant(30)).getID();
      get(keys.put(bytes("smoke/leased"), bytes("x"), PutOption.builder().withLeaseId(lease).build()));
      check(get(client.getLeaseClient().keepAliveOnce(lease)).getTTL() == 30, "keep-alive");
      ByteSequence owned = get(client.getLockClient().lock(bytes("smoke-lock"), lease)).getKey();
      get(client.getLockClient().unlock(owned));
      var leadership = get(client.getElectionClient().campaign(bytes("smoke-election"), lease, bytes("me")));
      check(
          get(client.getElectionClient().leader(bytes("smoke-election"))).getKv().getValue().equals(bytes("me")),
          "election");
      get(client.getElectionClient().resign(leadership.getLeader()));
      get(client.getLeaseClient().revoke(lease));
      check(get(keys.get(bytes("smoke/leased"))).getCount() == 0, "revoke");

      check(!get(client.getClusterClient().listMember()).getMembers().isEmpty(), "members");
      check(
          get(client.getMaintenanceClient().statusMember("http://" + arguments[0])).getVersion().equals("3.7.3"),
          "status");
      get(keys.delete(bytes("smoke/"), io.etcd.jetcd.options.DeleteOption.builder().isPrefix(true).build()));
      check(
          get(keys.get(bytes("smoke/"), GetOption.builder().isPrefix(true).withCountOnly(true).build())).getCount() == 0,
          "delete");
    }
    System.out.println("ok");
    System.exit(0);
  }
}
