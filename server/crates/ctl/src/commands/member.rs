//! member.

use metastore_proto::etcdserverpb as pb;

use super::key_value::is_serializable;
use super::{Command, Context, command};
use crate::failure::Failure;
use crate::flags::{Kind, flag};
use crate::output::Format;
use crate::quote::quote;
use crate::terminal::say;

pub(super) const COMMANDS: &[Command] = &[
    command(
        &["member", "add"],
        "<memberName> [options]",
        "Adds a member into the cluster",
        &[
            flag(
                "peer-urls",
                Kind::Text,
                "",
                "comma separated peer URLs for the new member.",
            ),
            flag(
                "learner",
                Kind::Boolean,
                "false",
                "indicates if the new member is raft learner",
            ),
        ],
        |context| Box::pin(add(context)),
    ),
    command(
        &["member", "remove"],
        "<memberID>",
        "Removes a member from the cluster",
        &[],
        |context| Box::pin(remove(context)),
    ),
    command(
        &["member", "update"],
        "<memberID> [options]",
        "Updates a member in the cluster",
        &[flag(
            "peer-urls",
            Kind::Text,
            "",
            "comma separated peer URLs for the updated member.",
        )],
        |context| Box::pin(update(context)),
    ),
    command(
        &["member", "list"],
        "",
        "Lists all members in the cluster",
        &[flag(
            "consistency",
            Kind::Text,
            "l",
            "Linearizable(l) or Serializable(s)",
        )],
        |context| Box::pin(list(context)),
    ),
    command(
        &["member", "promote"],
        "<memberID>",
        "Promotes a non-voting member in the cluster",
        &[],
        |context| Box::pin(promote(context)),
    ),
];

fn member_id(context: &Context) -> Result<u64, Failure> {
    let [text] = context.arguments.positional.as_slice() else {
        return Err(Failure::arguments("member ID is not provided"));
    };
    u64::from_str_radix(text, 16).map_err(|error| {
        Failure::arguments(format!("bad member ID arg ({error}), expecting ID in Hex"))
    })
}

fn peer_urls(context: &Context) -> Result<Vec<String>, Failure> {
    match context.arguments.text("peer-urls") {
        "" => Err(Failure::arguments("member peer urls not provided")),
        urls => Ok(urls.split(',').map(str::to_owned).collect()),
    }
}

fn cluster_id(header: Option<&pb::ResponseHeader>) -> u64 {
    header.map_or(0, |header| header.cluster_id)
}

async fn add(context: Context) -> Result<(), Failure> {
    let name = match context.arguments.positional.as_slice() {
        [] => return Err(Failure::arguments("member name not provided")),
        [name] => name.clone(),
        several => {
            let hints: String = several
                .iter()
                .filter(|argument| argument.to_lowercase().starts_with("http"))
                .map(|url| format!(", did you mean --peer-urls={url}"))
                .collect();
            return Err(Failure::arguments(format!("too many arguments{hints}")));
        }
    };
    let peer_ur_ls = peer_urls(&context)?;
    let client = context.client().await?;
    let request = pb::MemberAddRequest {
        peer_ur_ls,
        is_learner: context.arguments.boolean("learner"),
    };
    let answer = client.within(client.cluster().member_add(request)).await?;
    let added = answer.member.clone().unwrap_or_default();
    let role = if added.is_learner {
        " as learner "
    } else {
        " "
    };
    let sentence = format!(
        "Member {:16x} added{role}to cluster {:16x}",
        added.id,
        cluster_id(answer.header.as_ref())
    );
    context.printer.members(
        sentence,
        answer.header.as_ref(),
        answer.member.as_ref(),
        &answer.members,
        &answer,
    )?;
    if context.printer.format == Format::Simple {
        let cluster: Vec<_> = answer
            .members
            .iter()
            .flat_map(|member| {
                let name = if member.id == added.id {
                    &name
                } else {
                    &member.name
                };
                member
                    .peer_ur_ls
                    .iter()
                    .map(move |url| format!("{name}={url}"))
            })
            .collect();
        let quoted = |text: &str| quote(text.as_bytes());
        say(format!("\nETCD_NAME={}", quoted(&name)));
        say(format!(
            "ETCD_INITIAL_CLUSTER={}",
            quoted(&cluster.join(","))
        ));
        say(format!(
            "ETCD_INITIAL_ADVERTISE_PEER_URLS={}",
            quoted(context.arguments.text("peer-urls"))
        ));
        say("ETCD_INITIAL_CLUSTER_STATE=\"existing\"");
    }
    Ok(())
}

async fn remove(context: Context) -> Result<(), Failure> {
    let id = member_id(&context)?;
    let client = context.client().await?;
    let request = pb::MemberRemoveRequest { id };
    let answer = client
        .within(client.cluster().member_remove(request))
        .await?;
    let cluster = cluster_id(answer.header.as_ref());
    context.printer.members(
        format!("Member {id:16x} removed from cluster {cluster:16x}"),
        answer.header.as_ref(),
        None,
        &answer.members,
        &answer,
    )
}

async fn update(context: Context) -> Result<(), Failure> {
    let id = member_id(&context)?;
    let peer_ur_ls = peer_urls(&context)?;
    let client = context.client().await?;
    let request = pb::MemberUpdateRequest { id, peer_ur_ls };
    let answer = client
        .within(client.cluster().member_update(request))
        .await?;
    let cluster = cluster_id(answer.header.as_ref());
    context.printer.members(
        format!("Member {id:16x} updated in cluster {cluster:16x}"),
        answer.header.as_ref(),
        None,
        &answer.members,
        &answer,
    )
}

async fn promote(context: Context) -> Result<(), Failure> {
    let id = member_id(&context)?;
    let client = context.client().await?;
    let request = pb::MemberPromoteRequest { id };
    let answer = client
        .within(client.cluster().member_promote(request))
        .await?;
    let cluster = cluster_id(answer.header.as_ref());
    context.printer.members(
        format!("Member {id:16x} promoted in cluster {cluster:16x}"),
        answer.header.as_ref(),
        None,
        &answer.members,
        &answer,
    )
}

async fn list(context: Context) -> Result<(), Failure> {
    let linearizable = !is_serializable(context.arguments.text("consistency"))?;
    let client = context.client().await?;
    let request = pb::MemberListRequest { linearizable };
    let answer = client.within(client.cluster().member_list(request)).await?;
    context.printer.member_list(&answer)
}
