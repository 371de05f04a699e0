//! `Auth`: users, roles, permissions, and logging in.
//!
//! A change is one command; what is only looked at is read after a barrier. Passwords are hashed here, before anything
//! enters the log. Logging in enters nothing into the log: the token is signed with the group's key, and any server
//! accepts it.

use bytes::Bytes;
use tonic::{Code, Request, Status};
use weft_state::auth::{AuthChange, AuthError, AuthState, Caller, Permission, PermissionKind};
use weft_state::command::{Command, Response as Outcome};
use weft_xds_proto::authpb;
use weft_xds_proto::etcdserverpb as pb;

use super::{Answer, Api, status, unexpected};
use crate::api::caller::Asking;
use crate::auth::logins::LoginError;
use crate::auth::{TOKEN_TTL, token, unix_secs};

/// A user whose password changes while it is checked is asked for again; not for ever.
const LOGIN_ROUNDS_MAX: usize = 5;

/// Bytes of the key that tokens are signed with: as many as the hash has.
const TOKEN_KEY_BYTES: usize = 32;

/// Each method that is one change without further ado.
macro_rules! changes {
    ($($method:ident: $request:ident => $response:ident, |$message:ident| $change:expr;)*) => {
        #[tonic::async_trait]
        impl pb::auth_server::Auth for Api {
            $(
                async fn $method(&self, request: Request<pb::$request>) -> Answer<pb::$response> {
                    let (asking, $message) = self.opened(request).await?;
                    let header = Some(self.change(&asking, $change).await?);
                    Ok(pb::$response { header }.into())
                }
            )*

            async fn auth_enable(
                &self,
                request: Request<pb::AuthEnableRequest>,
            ) -> Answer<pb::AuthEnableResponse> {
                let (asking, _) = self.opened(request).await?;
                let mut key = [0; TOKEN_KEY_BYTES];
                aws_lc_rs::rand::fill(&mut key).map_err(|_| no_random_bytes())?;
                let enable = AuthChange::Enable { token_key: Bytes::copy_from_slice(&key) };
                Ok(pb::AuthEnableResponse { header: Some(self.change(&asking, enable).await?) }.into())
            }

            async fn user_add(
                &self,
                request: Request<pb::AuthUserAddRequest>,
            ) -> Answer<pb::AuthUserAddResponse> {
                let (asking, request) = self.opened(request).await?;
                let pb::AuthUserAddRequest { name: user, password, options, .. } = request;
                // Whoever may not add a user need not have a password hashed for it.
                asking.check(&self.coordinator, AuthState::check_admin).await?;
                let without = options.is_some_and(|options| options.no_password);
                let password_hash = if without { None } else { Some(self.hashed(password).await?) };
                let add = AuthChange::UserAdd { user, password_hash };
                Ok(pb::AuthUserAddResponse { header: Some(self.change(&asking, add).await?) }.into())
            }

            async fn user_change_password(
                &self,
                request: Request<pb::AuthUserChangePasswordRequest>,
            ) -> Answer<pb::AuthUserChangePasswordResponse> {
                let (asking, request) = self.opened(request).await?;
                let pb::AuthUserChangePasswordRequest { name: user, password, .. } = request;
                asking.check(&self.coordinator, AuthState::check_admin).await?;
                let password_hash = self.hashed(password).await?;
                let change = AuthChange::UserChangePassword { user, password_hash };
                Ok(pb::AuthUserChangePasswordResponse { header: Some(self.change(&asking, change).await?) }
                    .into())
            }

            async fn role_grant_permission(
                &self,
                request: Request<pb::AuthRoleGrantPermissionRequest>,
            ) -> Answer<pb::AuthRoleGrantPermissionResponse> {
                let (asking, request) = self.opened(request).await?;
                let pb::AuthRoleGrantPermissionRequest { name: role, perm } = request;
                let Some(permission) = perm else {
                    return Err(Status::invalid_argument("etcdserver: permission not given"));
                };
                let grant = AuthChange::RoleGrantPermission { role, permission: asked(permission)? };
                Ok(pb::AuthRoleGrantPermissionResponse { header: Some(self.change(&asking, grant).await?) }
                    .into())
            }

            async fn auth_status(
                &self,
                request: Request<pb::AuthStatusRequest>,
            ) -> Answer<pb::AuthStatusResponse> {
                let (header, (enabled, auth_revision)) = self
                    .look(request, |auth, caller, _| {
                        auth.check_admin(caller)?;
                        Ok((auth.is_enabled(), auth.revision()))
                    })
                    .await?;
                Ok(pb::AuthStatusResponse { header, enabled, auth_revision }.into())
            }

            async fn user_get(
                &self,
                request: Request<pb::AuthUserGetRequest>,
            ) -> Answer<pb::AuthUserGetResponse> {
                let (header, roles) = self
                    .look(request, |auth, caller, request| {
                        auth.check_self_or_admin(caller, &request.name)?;
                        auth.roles_of(&request.name)
                    })
                    .await?;
                Ok(pb::AuthUserGetResponse { header, roles }.into())
            }

            async fn user_list(
                &self,
                request: Request<pb::AuthUserListRequest>,
            ) -> Answer<pb::AuthUserListResponse> {
                let (header, users) = self
                    .look(request, |auth, caller, _| {
                        auth.check_admin(caller)?;
                        Ok(auth.users().map(str::to_owned).collect())
                    })
                    .await?;
                Ok(pb::AuthUserListResponse { header, users }.into())
            }

            async fn role_get(
                &self,
                request: Request<pb::AuthRoleGetRequest>,
            ) -> Answer<pb::AuthRoleGetResponse> {
                let (header, permissions) = self
                    .look(request, |auth, caller, request| {
                        auth.check_has_role_or_admin(caller, &request.role)?;
                        auth.permissions_of(&request.role)
                    })
                    .await?;
                let perm = permissions.into_iter().map(told).collect();
                Ok(pb::AuthRoleGetResponse { header, perm }.into())
            }

            async fn role_list(
                &self,
                request: Request<pb::AuthRoleListRequest>,
            ) -> Answer<pb::AuthRoleListResponse> {
                let (header, roles) = self
                    .look(request, |auth, caller, _| {
                        auth.check_admin(caller)?;
                        Ok(auth.roles().map(str::to_owned).collect())
                    })
                    .await?;
                Ok(pb::AuthRoleListResponse { header, roles }.into())
            }

            async fn authenticate(
                &self,
                request: Request<pb::AuthenticateRequest>,
            ) -> Answer<pb::AuthenticateResponse> {
                self.admit(request.metadata())?;
                let token = self.log_in(request.into_inner()).await?;
                Ok(pb::AuthenticateResponse { header: Some(self.header_now()), token }.into())
            }
        }
    };
}

changes! {
    auth_disable: AuthDisableRequest => AuthDisableResponse, |_message| AuthChange::Disable;
    user_delete: AuthUserDeleteRequest => AuthUserDeleteResponse,
        |message| AuthChange::UserDelete { user: message.name };
    user_grant_role: AuthUserGrantRoleRequest => AuthUserGrantRoleResponse,
        |message| AuthChange::UserGrantRole { user: message.user, role: message.role };
    user_revoke_role: AuthUserRevokeRoleRequest => AuthUserRevokeRoleResponse,
        |message| AuthChange::UserRevokeRole { user: message.name, role: message.role };
    role_add: AuthRoleAddRequest => AuthRoleAddResponse,
        |message| AuthChange::RoleAdd { role: message.name };
    role_delete: AuthRoleDeleteRequest => AuthRoleDeleteResponse,
        |message| AuthChange::RoleDelete { role: message.role };
    role_revoke_permission: AuthRoleRevokePermissionRequest => AuthRoleRevokePermissionResponse,
        |message| AuthChange::RoleRevokePermission {
            role: message.role,
            key: message.key,
            range_end: message.range_end,
        };
}

impl Api {
    async fn opened<T>(&self, request: Request<T>) -> Result<(Asking, T), Status> {
        self.admit(request.metadata())?;
        let asking = self.asking(request.metadata()).await?;
        Ok((asking, request.into_inner()))
    }

    async fn change(&self, asking: &Asking, change: AuthChange) -> Result<pb::ResponseHeader, Status> {
        let (proposed, header) = self.propose(asking, Command::Auth(change)).await?;
        match proposed.response.map_err(|error| status::store(&error))? {
            Outcome::Auth => Ok(header),
            other => Err(unexpected(&other)),
        }
    }

    /// A linearizable look at users and roles.
    async fn look<T, A>(
        &self,
        request: Request<T>,
        look: impl FnOnce(&AuthState, &Caller, &T) -> Result<A, AuthError>,
    ) -> Result<(Option<pb::ResponseHeader>, A), Status> {
        let (Asking { caller, .. }, request) = self.opened(request).await?;
        self.read_barrier().await?;
        let found = look(&self.coordinator.auth(), &caller, &request);
        Ok((Some(self.header_now()), found.map_err(|error| status::auth(&error))?))
    }

    async fn hashed(&self, password: String) -> Result<String, Status> {
        self.logins.hash(password).await.map_err(|error| login(&error))
    }

    /// A token for whoever knows the user's password.
    async fn log_in(&self, request: pb::AuthenticateRequest) -> Result<String, Status> {
        let pb::AuthenticateRequest { name, password } = request;
        for _ in 0..LOGIN_ROUNDS_MAX {
            self.read_barrier().await?;
            let before = self.coordinator.auth();
            if !before.is_enabled() {
                return Err(Status::failed_precondition("etcdserver: authentication is not enabled"));
            }
            let hash = match before.password_hash(&name) {
                Some(None) => return Err(without_password()),
                Some(Some(hash)) => Some(hash.to_owned()),
                None => None,
            };
            let right = self.logins.verify(password.clone(), hash).await.map_err(|error| login(&error))?;
            if !right {
                tracing::warn!(user = name, "a login with a wrong password or for an unknown user");
                return Err(Status::invalid_argument(
                    "etcdserver: authentication failed, invalid user ID or password",
                ));
            }
            // Meanwhile the password may have been changed: what was right then is not any more.
            let now = self.coordinator.auth();
            if let (Some(key), Some(since)) = (now.token_key(), now.since(&name))
                && before.since(&name) == Some(since)
            {
                let expires = unix_secs() + TOKEN_TTL.as_secs();
                return Ok(token::issue(key, &token::Claims { user: name, since, expires }));
            }
        }
        Err(Status::unavailable("etcdserver: request timed out"))
    }
}

/// etcd's answer, with its own prefix: it has no place in its table of errors.
fn without_password() -> Status {
    Status::unknown("auth: authentication failed, password was given for no password user")
}

fn login(error: &LoginError) -> Status {
    match error {
        LoginError::Busy => Status::resource_exhausted("etcdserver: too many requests"),
        LoginError::TooLong { .. } => Status::new(Code::InvalidArgument, format!("etcdserver: {error}")),
        LoginError::Failed => Status::internal(format!("etcdserver: {error}")),
    }
}

fn no_random_bytes() -> Status {
    Status::internal("etcdserver: the system gives no random bytes")
}

fn asked(permission: authpb::Permission) -> Result<Permission, Status> {
    use authpb::permission::Type;
    let kind = match Type::try_from(permission.perm_type) {
        Ok(Type::Read) => PermissionKind::Read,
        Ok(Type::Write) => PermissionKind::Write,
        Ok(Type::Readwrite) => PermissionKind::ReadWrite,
        Err(_) => {
            return Err(status::request(&status::RequestError::UnknownValue {
                field: "permission type",
                seen: permission.perm_type,
                allowed: "0 READ, 1 WRITE, 2 READWRITE",
            }));
        }
    };
    Ok(Permission { kind, key: permission.key, range_end: permission.range_end })
}

fn told(permission: Permission) -> authpb::Permission {
    use authpb::permission::Type;
    let kind = match permission.kind {
        PermissionKind::Read => Type::Read,
        PermissionKind::Write => Type::Write,
        PermissionKind::ReadWrite => Type::Readwrite,
    };
    authpb::Permission { perm_type: kind.into(), key: permission.key, range_end: permission.range_end }
}
