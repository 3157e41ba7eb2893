package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// login makes a client that authenticates as this user.
func (c *check) login(user, password string) (*clientv3.Client, error) {
	config := c.config
	config.Username, config.Password = user, password
	return clientv3.New(config)
}

// authentication needs a store without users. It leaves authentication on, with the user root.
func authentication(ctx context.Context, c *check) {
	_, err := c.client.AuthEnable(ctx)
	c.fails("enable without root", err, rpctypes.ErrRootUserNotExist)
	// A client with a password works while authentication is off.
	early, err := c.login("root", "rootpw")
	c.ok("login while authentication is off", err)
	_, err = early.Put(ctx, c.prefix+"early", "1")
	c.ok("put while authentication is off", err)

	_, err = c.client.UserAdd(ctx, "root", "rootpw")
	c.ok("add root", err)
	_, err = c.client.UserGrantRole(ctx, "root", "root")
	c.ok("grant root", err)
	_, err = c.client.UserAdd(ctx, "alice", "alicepw")
	c.ok("add alice", err)
	_, err = c.client.RoleAdd(ctx, "reader")
	c.ok("add role", err)
	_, err = c.client.RoleGrantPermission(ctx, "reader", c.prefix+"r", c.prefix+"s", clientv3.PermissionType(clientv3.PermRead))
	c.ok("grant permission", err)
	_, err = c.client.UserGrantRole(ctx, "alice", "reader")
	c.ok("grant role", err)
	_, err = c.client.AuthEnable(ctx)
	c.ok("enable", err)

	// It goes on when authentication comes on.
	_, err = early.Put(ctx, c.prefix+"early", "2")
	c.ok("put after authentication came on", err)
	c.ok("close", early.Close())
	_, err = c.client.Put(ctx, c.prefix+"r1", "1")
	c.fails("put without user", err, rpctypes.ErrUserEmpty)
	_, err = c.login("alice", "wrong")
	c.fails("login with a wrong password", err, rpctypes.ErrAuthFailed)

	root, err := c.login("root", "rootpw")
	c.ok("login as root", err)
	defer root.Close()
	alice, err := c.login("alice", "alicepw")
	c.ok("login as alice", err)
	defer alice.Close()
	_, err = root.Put(ctx, c.prefix+"r1", "1")
	c.ok("put as root", err)
	got, err := alice.Get(ctx, c.prefix+"r1")
	c.ok("get as alice", err)
	c.equal("keys", got.Count, 1)
	_, err = alice.Put(ctx, c.prefix+"r1", "2")
	c.fails("put as alice", err, rpctypes.ErrPermissionDenied)
	_, err = alice.Get(ctx, c.prefix, clientv3.WithPrefix())
	c.fails("get more as alice", err, rpctypes.ErrPermissionDenied)
	_, err = alice.UserList(ctx)
	c.fails("list users as alice", err, rpctypes.ErrPermissionDenied)

	// Watches are refused and allowed.
	refused := <-alice.Watch(ctx, c.prefix, clientv3.WithPrefix())
	c.equal("watch is canceled", refused.Canceled, true)
	c.equal("watch as alice", strings.Contains(fmt.Sprint(refused.Err()), "etcdserver: permission denied"), true)
	watched := alice.Watch(ctx, c.prefix+"r1", clientv3.WithCreatedNotify())
	c.equal("watch is created", (<-watched).Created, true)
	_, err = root.Put(ctx, c.prefix+"r1", "3")
	c.ok("put as root", err)
	c.equal("events", len((<-watched).Events), 1)

	// Every change of users makes tokens old or ends them; clients log in again by themselves.
	for round := range 3 {
		_, err = root.RoleAdd(ctx, fmt.Sprintf("role%d", round))
		c.ok("add role", err)
		_, err = alice.Get(ctx, c.prefix+"r1")
		c.ok("get after a change of roles", err)
		_, err = root.UserChangePassword(ctx, "alice", "alicepw")
		c.ok("change password", err)
		_, err = alice.Get(ctx, c.prefix+"r1")
		c.ok("get after the token ended", err)
		_, err = root.UserChangePassword(ctx, "root", "rootpw")
		c.ok("change own password", err)
		_, err = root.Put(ctx, c.prefix+"r1", "4")
		c.ok("put after the own token ended", err)
	}

	// Leases.
	granted, err := alice.Grant(ctx, 60)
	c.ok("grant as alice", err)
	_, err = root.Put(ctx, c.prefix+"x", "1", clientv3.WithLease(granted.ID))
	c.ok("put with a lease", err)
	_, err = alice.KeepAliveOnce(ctx, granted.ID)
	c.fails("keep alive as alice", err, rpctypes.ErrPermissionDenied)
	_, err = alice.Revoke(ctx, granted.ID)
	c.fails("revoke as alice", err, rpctypes.ErrPermissionDenied)
	_, err = root.KeepAliveOnce(ctx, granted.ID)
	c.ok("keep alive as root", err)

	// Off and on again: tokens are gone, clients go on.
	_, err = root.AuthDisable(ctx)
	c.ok("disable", err)
	_, err = c.client.Put(ctx, c.prefix+"anybody", "1")
	c.ok("put while authentication is off", err)
	_, err = alice.Put(ctx, c.prefix+"anybody", "2")
	c.ok("put while authentication is off", err)
	_, err = c.client.AuthEnable(ctx)
	c.ok("enable again", err)
	_, err = alice.Get(ctx, c.prefix+"r1")
	c.ok("get after authentication came on again", err)
	_, err = root.UserDelete(ctx, "alice")
	c.ok("delete alice", err)
	_, err = alice.Get(ctx, c.prefix+"r1")
	c.fails("get of a deleted user", err, rpctypes.ErrAuthFailed)
}

// relogin writes as root while the caller restarts members, which forget their tokens.
func relogin(ctx context.Context, c *check) {
	root, err := c.login("root", "rootpw")
	c.ok("login as root", err)
	defer root.Close()
	_, err = root.Put(ctx, c.prefix+"a", "first")
	c.ok("put", err)
	fmt.Println("READY")
	until := time.After(c.duration)
	for running := true; running; {
		select {
		case <-until:
			running = false
		case <-time.After(20 * time.Millisecond):
			attempt, cancel := context.WithTimeout(ctx, time.Second)
			_, err = root.Put(attempt, c.prefix+"a", "again")
			cancel()
			// A member that restarts may be away; it must never say that the client is nobody.
			if errors.Is(err, rpctypes.ErrUserEmpty) || errors.Is(err, rpctypes.ErrInvalidAuthToken) {
				fail("put while members restart: %v", err)
			}
		}
	}
	_, err = root.Put(ctx, c.prefix+"a", "last")
	c.ok("put after the restarts", err)
}

// expiry needs a store without users whose tokens live for a second or two. It outlives several of
// them, with calls, a watch and a lease that is kept alive.
func expiry(ctx context.Context, c *check) {
	_, err := c.client.UserAdd(ctx, "root", "rootpw")
	c.ok("add root", err)
	_, err = c.client.UserGrantRole(ctx, "root", "root")
	c.ok("grant root", err)
	_, err = c.client.AuthEnable(ctx)
	c.ok("enable", err)
	root, err := c.login("root", "rootpw")
	c.ok("login as root", err)
	defer root.Close()

	watched := root.Watch(ctx, c.prefix+"a", clientv3.WithCreatedNotify())
	c.equal("watch is created", (<-watched).Created, true)
	granted, err := root.Grant(ctx, 6)
	c.ok("grant", err)
	kept, err := root.KeepAlive(ctx, granted.ID)
	c.ok("keep alive", err)
	_, err = root.Put(ctx, c.prefix+"leased", "1", clientv3.WithLease(granted.ID))
	c.ok("put with a lease", err)
	go func() {
		for range kept {
		}
	}()
	for range 3 {
		// Longer than a token lives unused.
		time.Sleep(4 * time.Second)
		_, err = root.Put(ctx, c.prefix+"a", "1")
		c.ok("put after the token ended", err)
		response := <-watched
		c.ok("watch after its token ended", response.Err())
		c.equal("events", len(response.Events), 1)
	}
	time.Sleep(4 * time.Second)
	got, err := root.Get(ctx, c.prefix+"leased")
	c.ok("get after the token ended", err)
	c.equal("leased keys", got.Count, 1)
	time.Sleep(4 * time.Second)
	_, err = root.MemberList(ctx)
	c.ok("list members after the token ended", err)
	time.Sleep(4 * time.Second)
	_, err = root.UserList(ctx)
	c.ok("list users after the token ended", err)
	// Only who has no password to log in with again is told.
	token := c.config
	token.Token = "abcdefghijklmnop.1"
	other, err := clientv3.New(token)
	c.ok("client with a token", err)
	defer other.Close()
	_, err = other.Get(ctx, c.prefix+"a")
	c.fails("get with an unknown token", err, rpctypes.ErrInvalidAuthToken)
}
