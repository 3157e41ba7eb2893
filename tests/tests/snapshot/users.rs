//! Users, roles and permissions on the way there and back.

use std::path::Path;

use metastore_tests::programs::tool;
use metastore_tests::{Member, MemberBuilder, Program};

use super::{ENGINES, Folder, restore, try_run, within};

struct Control<'a> {
    member: &'a Member,
    user: Option<&'a str>,
}

impl Control<'_> {
    fn run(&self, arguments: &[&str]) -> String {
        let endpoints = format!("--endpoints={}", self.member.endpoint());
        let user = self.user.map(|user| format!("--user={user}"));
        let mut all = vec![endpoints.as_str()];
        all.extend(user.as_deref());
        all.extend(arguments);
        let output = try_run(&tool("etcdctl"), &all);
        // The log lines of etcdctl have times; its answers do not.
        let errors: Vec<&str> = output
            .stderr
            .lines()
            .filter(|line| line.starts_with("Error: "))
            .collect();
        format!("{}{}", output.stdout, errors.join("\n"))
    }

    fn done(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(!output.contains("Error"), "{arguments:?}: {output}");
    }
}

fn make_users(member: &Member) {
    let control = Control { member, user: None };
    for command in [
        &["put", "b", "readable"][..],
        &["put", "y", "hidden"],
        &["user", "add", "root:rootpw"],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "reader"],
        &["role", "grant-permission", "reader", "read", "a", "c"],
        &["role", "grant-permission", "reader", "readwrite", "own"],
        &["user", "add", "alice:secret"],
        &["user", "grant-role", "alice", "reader"],
        &["user", "add", "--no-password", "certificate"],
        &["role", "add", "empty"],
        &["auth", "enable"],
    ] {
        control.done(command);
    }
}

/// What users see, as etcdctl prints it.
fn view(member: &Member) -> Vec<String> {
    let as_user = |user| Control {
        member,
        user: Some(user),
    };
    let mut seen = Vec::new();
    for command in [
        &["user", "list"][..],
        &["user", "get", "alice", "--detail"],
        &["role", "list"],
        &["role", "get", "reader"],
        &["get", "y"],
        &["endpoint", "hashkv"],
    ] {
        let endpoint = member.endpoint();
        seen.push(
            as_user("root:rootpw")
                .run(command)
                .replace(&endpoint, "ENDPOINT"),
        );
    }
    for command in [
        &["get", "b"][..],
        &["get", "y"],
        &["put", "b", "1"],
        &["user", "list"],
    ] {
        seen.push(as_user("alice:secret").run(command));
    }
    seen.push(as_user("alice:wrong").run(&["get", "b"]));
    seen.push(Control { member, user: None }.run(&["get", "b"]));
    let status = as_user("root:rootpw").run(&["auth", "status"]);
    seen.push(status);
    seen
}

fn save(member: &Member, file: &Path) {
    let file = file.to_str().expect("a plain name");
    Control {
        member,
        user: Some("root:rootpw"),
    }
    .done(&["snapshot", "save", file]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_roles_survive_both_ways() {
    within(async {
        let folder = Folder::new();
        let etcd = Member::start(Program::Etcd).await;
        make_users(&etcd);
        let expected = view(&etcd);
        let file = folder.path("etcd.db");
        save(&etcd, &file);
        for engine in ENGINES {
            let builder = MemberBuilder::new(Program::MetaStore).flag(format!("--engine={engine}"));
            let data = folder.path(engine);
            restore(&tool("etcdutl"), &file, &builder, &data, &[]);
            let ours = builder.data_folder(&data).start().await;
            assert_eq!(view(&ours), expected, "{engine}");

            let back = folder.path("ours.db");
            save(&ours, &back);
            let builder = MemberBuilder::new(Program::Etcd);
            let data = folder.path(&format!("etcd-{engine}"));
            restore(&tool("etcdutl"), &back, &builder, &data, &[]);
            let again = builder.data_folder(&data).start().await;
            assert_eq!(view(&again), expected, "{engine}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_that_are_only_in_the_log_of_a_killed_etcd_survive() {
    within(async {
        let mut etcd = Member::start(Program::Etcd).await;
        make_users(&etcd);
        let expected = view(&etcd);
        etcd.kill();
        let data = etcd.data_folder().to_owned();
        let ours = etcd
            .builder()
            .clone()
            .program(Program::MetaStore)
            .data_folder(&data)
            .start()
            .await;
        assert_eq!(view(&ours), expected);
    })
    .await;
}
