//! auth, user, role.

use metastore_proto::authpb::{Permission, UserAddOptions};
use metastore_proto::etcdserverpb as pb;

use super::{Command, Context, command};
use crate::failure::Failure;
use crate::flags::{FlagSpec, Kind, flag};
use crate::keys::prefix_end;
use crate::terminal::{ask_new_password, read_word, say, write_stdout};

const PREFIX_FLAG: FlagSpec = flag(
    "prefix",
    Kind::Boolean,
    "false",
    "the permission of a prefix",
);
const FROM_KEY_FLAG: FlagSpec = flag(
    "from-key",
    Kind::Boolean,
    "false",
    "the permission of keys that are greater than or equal to the given key using byte compare",
);
const INTERACTIVE_FLAG: FlagSpec = flag(
    "interactive",
    Kind::Boolean,
    "true",
    "ask for the password at the terminal; false: read it from stdin",
);

pub(super) const COMMANDS: &[Command] = &[
    command(
        &["auth", "enable"],
        "",
        "Enables authentication",
        &[],
        |context| Box::pin(enable(context)),
    ),
    command(
        &["auth", "disable"],
        "",
        "Disables authentication",
        &[],
        |context| Box::pin(disable(context)),
    ),
    command(
        &["auth", "status"],
        "",
        "Returns authentication status",
        &[],
        |context| Box::pin(status(context)),
    ),
    command(
        &["user", "add"],
        "<user name or user:password> [options]",
        "Adds a new user",
        &[
            INTERACTIVE_FLAG,
            flag(
                "new-user-password",
                Kind::Text,
                "",
                "Supply password from the command line flag",
            ),
            flag(
                "no-password",
                Kind::Boolean,
                "false",
                "Create a user without password (CN based auth only)",
            ),
        ],
        |context| Box::pin(user_add(context)),
    ),
    command(
        &["user", "delete"],
        "<user name>",
        "Deletes a user",
        &[],
        |context| Box::pin(user_delete(context)),
    ),
    command(
        &["user", "get"],
        "<user name> [options]",
        "Gets detailed information of a user",
        &[flag(
            "detail",
            Kind::Boolean,
            "false",
            "Show permissions of roles granted to the user",
        )],
        |context| Box::pin(user_get(context)),
    ),
    command(&["user", "list"], "", "Lists all users", &[], |context| {
        Box::pin(user_list(context))
    }),
    command(
        &["user", "passwd"],
        "<user name> [options]",
        "Changes password of user",
        &[INTERACTIVE_FLAG],
        |context| Box::pin(user_password(context)),
    ),
    command(
        &["user", "grant-role"],
        "<user name> <role name>",
        "Grants a role to a user",
        &[],
        |context| Box::pin(user_grant_role(context)),
    ),
    command(
        &["user", "revoke-role"],
        "<user name> <role name>",
        "Revokes a role from a user",
        &[],
        |context| Box::pin(user_revoke_role(context)),
    ),
    command(
        &["role", "add"],
        "<role name>",
        "Adds a new role",
        &[],
        |context| Box::pin(role_add(context)),
    ),
    command(
        &["role", "delete"],
        "<role name>",
        "Deletes a role",
        &[],
        |context| Box::pin(role_delete(context)),
    ),
    command(
        &["role", "get"],
        "<role name>",
        "Gets detailed information of a role",
        &[],
        |context| Box::pin(role_get(context)),
    ),
    command(&["role", "list"], "", "Lists all roles", &[], |context| {
        Box::pin(role_list(context))
    }),
    command(
        &["role", "grant-permission"],
        "[options] <role name> <permission type> <key> [endkey]",
        "Grants a key to a role",
        &[PREFIX_FLAG, FROM_KEY_FLAG],
        |context| Box::pin(role_grant_permission(context)),
    ),
    command(
        &["role", "revoke-permission"],
        "<role name> <key> [endkey]",
        "Revokes a key from a role",
        &[PREFIX_FLAG, FROM_KEY_FLAG],
        |context| Box::pin(role_revoke_permission(context)),
    ),
];

/// The arguments, exactly so many.
fn exactly<'a, const N: usize>(
    context: &'a Context,
    needed: &str,
) -> Result<&'a [String; N], Failure> {
    context
        .arguments
        .positional
        .as_slice()
        .try_into()
        .map_err(|_| Failure::arguments(needed))
}

async fn enable(context: Context) -> Result<(), Failure> {
    exactly::<0>(
        &context,
        "auth enable command does not accept any arguments",
    )?;
    const ROOT: &str = "root";
    let client = context.client().await?;
    loop {
        let answer = client
            .within(client.auth().auth_enable(pb::AuthEnableRequest {}))
            .await;
        match answer {
            Ok(_) => break,
            Err(failure) if failure.message == "etcdserver: root user does not have root role" => {
                let request = pb::AuthRoleAddRequest { name: ROOT.into() };
                client.within(client.auth().role_add(request)).await?;
                let request = pb::AuthUserGrantRoleRequest {
                    user: ROOT.into(),
                    role: ROOT.into(),
                };
                client
                    .within(client.auth().user_grant_role(request))
                    .await?;
            }
            Err(failure) => return Err(failure),
        }
    }
    say("Authentication Enabled");
    Ok(())
}

async fn disable(context: Context) -> Result<(), Failure> {
    exactly::<0>(
        &context,
        "auth disable command does not accept any arguments",
    )?;
    let client = context.client().await?;
    client
        .within(client.auth().auth_disable(pb::AuthDisableRequest {}))
        .await?;
    say("Authentication Disabled");
    Ok(())
}

async fn status(context: Context) -> Result<(), Failure> {
    exactly::<0>(
        &context,
        "auth status command does not accept any arguments",
    )?;
    let client = context.client().await?;
    let answer = client
        .within(client.auth().auth_status(pb::AuthStatusRequest {}))
        .await?;
    context.printer.auth_status(&answer)
}

/// A password from the terminal or the standard input.
async fn new_password(user: &str, interactive: bool) -> Result<String, Failure> {
    let user = user.to_owned();
    tokio::task::spawn_blocking(move || match interactive {
        true => ask_new_password(&user),
        false => Ok(read_word()),
    })
    .await
    .map_err(|error| Failure::error(error.to_string()))?
}

async fn user_add(context: Context) -> Result<(), Failure> {
    let [argument] = exactly(
        &context,
        "user add command requires user name as its argument",
    )?;
    let no_password = context.arguments.boolean("no-password");
    let given = context.arguments.text("new-user-password");
    let interactive = context.arguments.boolean("interactive");
    let (name, password) = if no_password {
        (argument.clone(), String::new())
    } else if !given.is_empty() {
        (argument.clone(), given.to_owned())
    } else {
        match argument.split_once(':') {
            Some(("", _)) => {
                return Err(Failure::arguments("empty user name is not allowed"));
            }
            Some((name, password)) => (name.to_owned(), password.to_owned()),
            None => (argument.clone(), new_password(argument, interactive).await?),
        }
    };
    let client = context.client().await?;
    let request = pb::AuthUserAddRequest {
        name: name.clone(),
        password,
        options: Some(UserAddOptions { no_password }),
        ..Default::default()
    };
    let answer = client.auth().user_add(request).await?.into_inner();
    context
        .printer
        .sentence(&format!("User {name} created"), &answer)
}

async fn user_delete(context: Context) -> Result<(), Failure> {
    let [name] = exactly(
        &context,
        "user delete command requires user name as its argument",
    )?;
    let client = context.client().await?;
    let request = pb::AuthUserDeleteRequest { name: name.clone() };
    let answer = client.auth().user_delete(request).await?.into_inner();
    context
        .printer
        .sentence(&format!("User {name} deleted"), &answer)
}

async fn user_get(context: Context) -> Result<(), Failure> {
    let [name] = exactly(
        &context,
        "user get command requires user name as its argument",
    )?;
    let client = context.client().await?;
    let request = pb::AuthUserGetRequest { name: name.clone() };
    let answer = client.auth().user_get(request).await?.into_inner();
    if !context.arguments.boolean("detail") {
        return context.printer.user(name, &answer);
    }
    say(format!("User: {name}"));
    for role in answer.roles {
        write_stdout(b"\n");
        let request = pb::AuthRoleGetRequest { role: role.clone() };
        let answer = client.auth().role_get(request).await?.into_inner();
        context.printer.role(&role, &answer)?;
    }
    Ok(())
}

async fn user_list(context: Context) -> Result<(), Failure> {
    exactly::<0>(&context, "user list command requires no arguments")?;
    let client = context.client().await?;
    let answer = client
        .auth()
        .user_list(pb::AuthUserListRequest {})
        .await?
        .into_inner();
    context
        .printer
        .names("users", &answer.users, answer.header.as_ref(), &answer)
}

async fn user_password(context: Context) -> Result<(), Failure> {
    let [name] = exactly(
        &context,
        "user passwd command requires user name as its argument",
    )?;
    let password = new_password(name, context.arguments.boolean("interactive")).await?;
    let client = context.client().await?;
    let request = pb::AuthUserChangePasswordRequest {
        name: name.clone(),
        password,
        ..Default::default()
    };
    let answer = client
        .auth()
        .user_change_password(request)
        .await?
        .into_inner();
    context.printer.sentence("Password updated", &answer)
}

async fn user_grant_role(context: Context) -> Result<(), Failure> {
    let [user, role] = exactly(
        &context,
        "user grant command requires user name and role name as its argument",
    )?;
    let client = context.client().await?;
    let request = pb::AuthUserGrantRoleRequest {
        user: user.clone(),
        role: role.clone(),
    };
    let answer = client.auth().user_grant_role(request).await?.into_inner();
    context
        .printer
        .sentence(&format!("Role {role} is granted to user {user}"), &answer)
}

async fn user_revoke_role(context: Context) -> Result<(), Failure> {
    let [user, role] = exactly(
        &context,
        "user revoke-role requires user name and role name as its argument",
    )?;
    let client = context.client().await?;
    let request = pb::AuthUserRevokeRoleRequest {
        name: user.clone(),
        role: role.clone(),
    };
    let answer = client.auth().user_revoke_role(request).await?.into_inner();
    context
        .printer
        .sentence(&format!("Role {role} is revoked from user {user}"), &answer)
}

async fn role_add(context: Context) -> Result<(), Failure> {
    let [name] = exactly(
        &context,
        "role add command requires role name as its argument",
    )?;
    let client = context.client().await?;
    let request = pb::AuthRoleAddRequest { name: name.clone() };
    let answer = client.auth().role_add(request).await?.into_inner();
    context
        .printer
        .sentence(&format!("Role {name} created"), &answer)
}

async fn role_delete(context: Context) -> Result<(), Failure> {
    let [name] = exactly(
        &context,
        "role delete command requires role name as its argument",
    )?;
    let client = context.client().await?;
    let request = pb::AuthRoleDeleteRequest { role: name.clone() };
    let answer = client.auth().role_delete(request).await?.into_inner();
    context
        .printer
        .sentence(&format!("Role {name} deleted"), &answer)
}

async fn role_get(context: Context) -> Result<(), Failure> {
    let [name] = exactly(
        &context,
        "role get command requires role name as its argument",
    )?;
    let client = context.client().await?;
    let request = pb::AuthRoleGetRequest { role: name.clone() };
    let answer = client.auth().role_get(request).await?.into_inner();
    context.printer.role(name, &answer)
}

async fn role_list(context: Context) -> Result<(), Failure> {
    exactly::<0>(&context, "role list command requires no arguments")?;
    let client = context.client().await?;
    let answer = client
        .auth()
        .role_list(pb::AuthRoleListRequest {})
        .await?
        .into_inner();
    context
        .printer
        .names("roles", &answer.roles, answer.header.as_ref(), &answer)
}

async fn role_grant_permission(context: Context) -> Result<(), Failure> {
    let [name, kind, range @ ..] = context.arguments.positional.as_slice() else {
        return Err(role_grant_usage());
    };
    if range.is_empty() {
        return Err(role_grant_usage());
    }
    let perm_type = match kind.to_uppercase().as_str() {
        "READ" => 0,
        "WRITE" => 1,
        "READWRITE" => 2,
        _ => {
            return Err(Failure::arguments(format!(
                "invalid permission type: {kind}"
            )));
        }
    };
    let (key, range_end) = permission_range(&context, range)?;
    let client = context.client().await?;
    let request = pb::AuthRoleGrantPermissionRequest {
        name: name.clone(),
        perm: Some(Permission {
            perm_type,
            key: key.into(),
            range_end: range_end.into(),
        }),
    };
    let answer = client
        .auth()
        .role_grant_permission(request)
        .await?
        .into_inner();
    context
        .printer
        .sentence(&format!("Role {name} updated"), &answer)
}

fn role_grant_usage() -> Failure {
    Failure::arguments(
        "role grant command requires role name, permission type, and key [endkey] as its argument",
    )
}

async fn role_revoke_permission(context: Context) -> Result<(), Failure> {
    let [name, range @ ..] = context.arguments.positional.as_slice() else {
        return Err(role_revoke_usage());
    };
    if range.is_empty() {
        return Err(role_revoke_usage());
    }
    let (key, range_end) = permission_range(&context, range)?;
    let client = context.client().await?;
    let request = pb::AuthRoleRevokePermissionRequest {
        role: name.clone(),
        key: key.into(),
        range_end: range_end.clone().into(),
    };
    let answer = client
        .auth()
        .role_revoke_permission(request)
        .await?
        .into_inner();
    let shown = &range[0];
    let end = String::from_utf8_lossy(&range_end);
    let what = match &*end {
        "" => format!("key {shown}"),
        "\0" => format!("range [{shown}, <open ended>"),
        end => format!("range [{shown}, {end})"),
    };
    context.printer.sentence(
        &format!("Permission of {what} is revoked from role {name}"),
        &answer,
    )
}

fn role_revoke_usage() -> Failure {
    Failure::arguments(
        "role revoke-permission command requires role name and key [endkey] as its argument",
    )
}

/// Key and end of a permission.
fn permission_range(
    context: &Context,
    arguments: &[String],
) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let prefix = context.arguments.boolean("prefix");
    let from_key = context.arguments.boolean("from-key");
    let key = arguments[0].as_bytes();
    if prefix && from_key && arguments.len() == 1 {
        return Err(Failure::arguments(
            "--from-key and --prefix flags are mutually exclusive",
        ));
    }
    if key.is_empty() {
        // The server takes the empty prefix as the range from the smallest key on.
        let end = if prefix || from_key {
            vec![0]
        } else {
            Vec::new()
        };
        return Ok((vec![0], end));
    }
    let end = match (arguments.get(1), prefix, from_key) {
        (None, true, _) => prefix_end(key),
        (None, _, true) => vec![0],
        (None, ..) => Vec::new(),
        (Some(_), true, _) => {
            return Err(Failure::arguments(
                "unexpected endkey argument with --prefix flag",
            ));
        }
        (Some(_), _, true) => {
            return Err(Failure::arguments(
                "unexpected endkey argument with --from-key flag",
            ));
        }
        (Some(end), ..) => end.clone().into_bytes(),
    };
    Ok((key.to_vec(), end))
}
