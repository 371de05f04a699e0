//! `Auth`: there are no users yet. Everything says so; nothing pretends.

use tonic::{Code, Request, Status};
use weft_xds_proto::etcdserverpb as pb;

use super::{Answer, Api, status};

/// Each method that is refused in the same way, so that the list of them is all that has to be read.
macro_rules! refuse {
    ($($method:ident: $request:ident => $response:ident,)*) => {
        #[tonic::async_trait]
        impl pb::auth_server::Auth for Api {
            async fn auth_status(&self, _: Request<pb::AuthStatusRequest>) -> Answer<pb::AuthStatusResponse> {
                let header = Some(self.header_now());
                Ok(pb::AuthStatusResponse { header, enabled: false, auth_revision: 0 }.into())
            }

            /// Off already.
            async fn auth_disable(&self, _: Request<pb::AuthDisableRequest>) -> Answer<pb::AuthDisableResponse> {
                Ok(pb::AuthDisableResponse { header: Some(self.header_now()) }.into())
            }

            /// etcd's answer when authentication is off: clients that were given a password go on without.
            async fn authenticate(
                &self,
                _: Request<pb::AuthenticateRequest>,
            ) -> Answer<pb::AuthenticateResponse> {
                Err(Status::new(Code::FailedPrecondition, "etcdserver: authentication is not enabled"))
            }

            $(
                async fn $method(&self, _: Request<pb::$request>) -> Answer<pb::$response> {
                    Err(no_users())
                }
            )*
        }
    };
}

refuse! {
    auth_enable: AuthEnableRequest => AuthEnableResponse,
    user_add: AuthUserAddRequest => AuthUserAddResponse,
    user_get: AuthUserGetRequest => AuthUserGetResponse,
    user_list: AuthUserListRequest => AuthUserListResponse,
    user_delete: AuthUserDeleteRequest => AuthUserDeleteResponse,
    user_change_password: AuthUserChangePasswordRequest => AuthUserChangePasswordResponse,
    user_grant_role: AuthUserGrantRoleRequest => AuthUserGrantRoleResponse,
    user_revoke_role: AuthUserRevokeRoleRequest => AuthUserRevokeRoleResponse,
    role_add: AuthRoleAddRequest => AuthRoleAddResponse,
    role_get: AuthRoleGetRequest => AuthRoleGetResponse,
    role_list: AuthRoleListRequest => AuthRoleListResponse,
    role_delete: AuthRoleDeleteRequest => AuthRoleDeleteResponse,
    role_grant_permission: AuthRoleGrantPermissionRequest => AuthRoleGrantPermissionResponse,
    role_revoke_permission: AuthRoleRevokePermissionRequest => AuthRoleRevokePermissionResponse,
}

fn no_users() -> Status {
    status::not_offered(
        "authentication by users and roles",
        "bind the server to loopback or to a network that only its clients reach",
    )
}
