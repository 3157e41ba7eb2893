"""Two members of a Patroni cluster without their databases: Patroni's own etcd3 module elects a leader, renews it,
changes configuration, synchronous state and failover by compare-and-swap, and wakes up from its watch.

    run-python smoke_patroni.py host:port
"""
import os
import sys
import threading
import time

from patroni.dcs import get_dcs

TTL = 4
PATIENCE = 20


def member(name):
    return get_dcs({
        'scope': f'demo-{os.getpid()}', 'namespace': '/patroni/', 'name': name,
        'ttl': TTL, 'retry_timeout': 3, 'loop_wait': 2, 'etcd3': {'hosts': [sys.argv[1]]},
    })


def expect(what, value, wanted):
    assert value == wanted, f'{what}: {value!r} instead of {wanted!r}'


def expect_soon(what, look, wanted):
    """Patroni reads from a cache that a watch fills."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            value = look()
        except AttributeError:
            value = 'nothing'
        if value == wanted:
            return
        assert time.monotonic() < deadline, f'{what}: {value!r} instead of {wanted!r}'
        time.sleep(0.05)


def leader(dcs):
    found = dcs.get_cluster().leader
    return found.name if found and found.name else None


def touch(dcs, name):
    return bool(dcs.touch_member({'conn_url': f'postgres://{name}/', 'api_url': f'http://{name}/',
                                  'role': 'replica', 'state': 'running'}))


def names(dcs):
    return sorted(found.name for found in dcs.get_cluster().members)


def main():
    a, b = member('a'), member('b')
    expect('a initializes', bool(a.initialize(create_new=True, sysid='7')), True)
    expect('b does not', bool(b.initialize(create_new=True, sysid='8')), False)
    expect('a is known', touch(a, 'a'), True)
    expect('b is known', touch(b, 'b'), True)
    expect('a leads', bool(a.attempt_to_acquire_leader()), True)
    expect('b does not lead', bool(b.attempt_to_acquire_leader()), False)
    expect_soon('identity', lambda: b.get_cluster().initialize, '7')
    expect_soon('members', lambda: names(b), ['a', 'b'])
    expect_soon('leader', lambda: leader(b), 'a')
    expect('renewal', bool(a.update_leader(a.get_cluster(), 5, {}, {})), True)
    expect('configuration', bool(a.set_config_value('{"ttl": 4}')), True)
    expect_soon('configuration seen', lambda: b.get_cluster().config.data, {'ttl': 4})
    expect('history', bool(a.set_history_value('[]')), True)
    expect('synchronous state', bool(a.write_sync_state('a', ['b'], 0)), True)
    expect_soon('synchronous state seen', lambda: a.get_cluster().sync.leader, 'a')
    version = a.get_cluster().sync.version
    expect('swap', bool(a.write_sync_state('a', [], 0, version=version)), True)
    expect('swap of a stale version', bool(a.write_sync_state('a', ['b'], 0, version=version)), False)
    expect('failover', bool(b.manual_failover('a', 'b')), True)
    expect_soon('failover seen', lambda: a.get_cluster().failover.candidate, 'b')

    # b waits for a change, a gives the leader key back.
    expect_soon('leader', lambda: leader(b), 'a')
    timer = threading.Timer(0.5, lambda: a.delete_leader(a.get_cluster().leader, 6))
    timer.start()
    began = time.monotonic()
    b.watch(None, 3 * PATIENCE)
    assert time.monotonic() - began < PATIENCE, 'the watch slept'
    timer.join()
    expect_soon('no leader', lambda: leader(b), None)
    expect('b leads', bool(b.attempt_to_acquire_leader()), True)
    expect_soon('new leader', lambda: leader(a), 'b')

    # b falls silent: its lease ends, and with it its keys.
    def look():
        touch(a, 'a')
        return leader(a), names(a)
    expect_soon('the silent member is gone', look, (None, ['a']))
    expect('a leads again', bool(a.attempt_to_acquire_leader()), True)
    expect('end', bool(a.delete_cluster()), True)
    expect_soon('nothing is left', lambda: a.get_cluster().is_empty(), True)
    print('ok', flush=True)
    # Patroni's watching threads never end.
    os._exit(0)


if __name__ == '__main__':
    try:
        main()
    except BaseException as error:
        print(f'{type(error).__name__}: {error}', flush=True)
        os._exit(1)
