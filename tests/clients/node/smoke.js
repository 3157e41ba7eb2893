// npm etcd3: keys, transactions, watch, lease, lock, election, STM. Argument: host:port.
'use strict';
const assert = require('node:assert');
const { Etcd3 } = require('etcd3');

async function main(endpoint) {
  const client = new Etcd3({ hosts: endpoint });
  await client.put('smoke/key').value('value');
  assert.strictEqual(await client.get('smoke/key').string(), 'value');
  await client.put('smoke/number').value(42);
  assert.strictEqual(await client.get('smoke/number').number(), 42);

  const watcher = await client.watch().prefix('smoke/watched/').create();
  const seen = new Promise((resolve) => watcher.on('put', (pair) => resolve(pair.key.toString())));
  await client.put('smoke/watched/1').value('x');
  assert.strictEqual(await seen, 'smoke/watched/1');
  await watcher.cancel();

  const lease = client.lease(30);
  await lease.put('smoke/leased').value('x');
  assert.deepStrictEqual(await client.getAll().prefix('smoke/l').keys(), ['smoke/leased']);
  await lease.revoke();
  assert.strictEqual(await client.get('smoke/leased').string(), null);

  const outcome = await client
    .if('smoke/key', 'Value', '==', 'value')
    .then(client.put('smoke/key').value('second'))
    .else(client.get('smoke/key'))
    .commit();
  assert.ok(outcome.succeeded);

  const lock = client.lock('smoke-lock');
  await lock.acquire();
  await lock.release();

  const election = client.election('smoke-election');
  const campaign = election.campaign('me');
  await new Promise((resolve, reject) => {
    campaign.once('elected', resolve);
    campaign.once('error', reject);
  });
  assert.strictEqual(await election.leader(), 'me');
  await campaign.resign();

  await client.stm().transact(async (transaction) => {
    const number = await transaction.get('smoke/number').number();
    await transaction.put('smoke/number').value(number + 1);
  });
  assert.strictEqual(await client.get('smoke/number').number(), 43);
  assert.strictEqual((await client.maintenance.status()).version, '3.7.3');
  assert.ok((await client.cluster.memberList({})).members.length > 0);
  await client.delete().prefix('smoke/');
  client.close();
  console.log('ok');
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});
