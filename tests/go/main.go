// clientv3-check drives a store with etcd's own Go client and checks what comes back.
//
//	clientv3-check -endpoints URL[,URL] [-cacert FILE [-cert FILE -key FILE]] [-user NAME -password FILE]
//	               [-duration 10s] [-output FILE] COMMAND
//
// Each command works on keys below "check/COMMAND/" of its own. It prints one line of JSON and
// exits 0, or says what was wrong and exits 1. The commands `watch`, `keepalive`, `relogin` and `history`
// print READY first and then run for -duration, while the caller restarts members.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// commandLimit ends a command that hangs, -duration not counted.
const commandLimit = 60 * time.Second

// check carries what every command needs.
type check struct {
	client   *clientv3.Client
	config   clientv3.Config
	prefix   string
	duration time.Duration
	output   string
	count    int
}

// equal fails the command unless both values print alike.
func (c *check) equal(what string, got, wanted any) {
	c.count++
	if fmt.Sprint(got) != fmt.Sprint(wanted) {
		fail("%s: got %v, wanted %v", what, got, wanted)
	}
}

// ok fails the command when err is an error.
func (c *check) ok(what string, err error) {
	c.count++
	if err != nil {
		fail("%s: %v", what, err)
	}
}

// fails fails the command unless err is the wanted one.
func (c *check) fails(what string, err, wanted error) {
	c.count++
	if err == nil || err.Error() != wanted.Error() {
		fail("%s: got error %v, wanted %v", what, err, wanted)
	}
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}

// secure reads the files of TLS; nil without an authority.
func secure(authority, certificate, key string) *tls.Config {
	if authority == "" {
		return nil
	}
	pem, err := os.ReadFile(authority)
	if err != nil {
		fail("cannot read -cacert: %v", err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		fail("no certificate in %s", authority)
	}
	if certificate != "" {
		own, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			fail("cannot read -cert and -key: %v", err)
		}
		config.Certificates = []tls.Certificate{own}
	}
	return config
}

var commands = map[string]func(context.Context, *check){
	"kv":        keyValue,
	"txn":       transactions,
	"watch":     watchWithResume,
	"lease":     leases,
	"keepalive": keepAlive,
	"session":   session,
	"mutex":     mutex,
	"election":  election,
	"stm":       softwareTransactions,
	"members":   members,
	"naming":    naming,
	"recipes":   recipes,
	"wire":      wire,
	"auth":      authentication,
	"relogin":   relogin,
	"expiry":    expiry,
	"history":   history,
}

func main() {
	endpoints := flag.String("endpoints", "http://127.0.0.1:2379", "client URLs, separated by commas")
	authority := flag.String("cacert", "", "certificate authorities of the servers, for https URLs")
	certificate := flag.String("cert", "", "own certificate")
	key := flag.String("key", "", "key of the own certificate")
	user := flag.String("user", "", "name to log in with")
	password := flag.String("password", "", "file with the password of -user")
	duration := flag.Duration("duration", 5*time.Second, "how long watch, keepalive and history run")
	output := flag.String("output", "", "file into which history records")
	flag.Parse()
	name := flag.Arg(0)
	command, known := commands[name]
	if !known {
		fail("unknown command %q", name)
	}

	config := clientv3.Config{
		Endpoints:   strings.Split(*endpoints, ","),
		TLS:         secure(*authority, *certificate, *key),
		DialTimeout: 5 * time.Second,
		Logger:      zap.NewNop(),
	}
	if *user != "" {
		secret, err := os.ReadFile(*password)
		if err != nil {
			fail("cannot read -password: %v", err)
		}
		config.Username, config.Password = *user, string(secret)
	}
	client, err := clientv3.New(config)
	if err != nil {
		fail("cannot make a client: %v", err)
	}
	defer client.Close()

	ctx, cancel := context.WithTimeout(context.Background(), commandLimit+*duration)
	defer cancel()
	state := &check{client: client, config: config, prefix: "check/" + name + "/", duration: *duration, output: *output}
	start := time.Now()
	command(ctx, state)
	line, _ := json.Marshal(map[string]any{
		"command": name,
		"checks":  state.count,
		"seconds": time.Since(start).Seconds(),
	})
	fmt.Println(string(line))
}
