use std::sync::Arc;

use super::*;
use crate::error::StoreError;

fn change(state: &mut Arc<AuthState>, change: AuthChange) -> Result<(), StoreError> {
    state.change(&change)
}

fn add(state: &mut Arc<AuthState>, user: &str) {
    let password_hash = Some(format!("hash of {user}"));
    change(state, AuthChange::UserAdd { user: user.into(), password_hash }).expect("is added");
}

fn grant(state: &mut Arc<AuthState>, user: &str, role: &str) {
    change(state, AuthChange::UserGrantRole { user: user.into(), role: role.into() }).expect("is granted");
}

fn allow(state: &mut Arc<AuthState>, role: &str, kind: PermissionKind, key: &'static str, end: &'static str) {
    let permission = Permission { kind, key: key.into(), range_end: end.into() };
    let grant = AuthChange::RoleGrantPermission { role: role.into(), permission };
    change(state, grant).expect("is granted");
}

fn enable(state: &mut Arc<AuthState>) {
    change(state, AuthChange::Enable { token_key: "key".into() }).expect("is enabled");
}

fn caller(state: &AuthState, user: &str) -> Caller {
    Caller::User { name: user.into(), since: state.since(user).expect("exists") }
}

/// Root, and `app` with the role `app`; enabled.
fn enabled() -> Arc<AuthState> {
    let mut state = Arc::new(AuthState::default());
    add(&mut state, ROOT);
    grant(&mut state, ROOT, ROOT);
    add(&mut state, "app");
    change(&mut state, AuthChange::RoleAdd { role: "app".into() }).expect("is added");
    grant(&mut state, "app", "app");
    enable(&mut state);
    state
}

fn read(state: &AuthState, caller: &Caller, key: &str, end: &str) -> Result<(), AuthError> {
    state.check_range(caller, Access::Read, key.as_bytes(), end.as_bytes())
}

fn write(state: &AuthState, caller: &Caller, key: &str, end: &str) -> Result<(), AuthError> {
    state.check_range(caller, Access::Write, key.as_bytes(), end.as_bytes())
}

#[test]
fn it_cannot_be_enabled_without_a_root_user_that_has_the_root_role() {
    let mut state = Arc::new(AuthState::default());
    let enable = || AuthChange::Enable { token_key: "key".into() };
    assert_eq!(change(&mut state, enable()), Err(AuthError::RootUserMissing.into()));
    add(&mut state, ROOT);
    assert_eq!(change(&mut state, enable()), Err(AuthError::RootRoleMissing.into()));
    grant(&mut state, ROOT, ROOT);
    assert_eq!(change(&mut state, enable()), Ok(()));
    assert!(state.is_enabled());
}

#[test]
fn nobody_is_checked_while_it_is_off() {
    let state = AuthState::default();
    assert_eq!(write(&state, &Caller::Anonymous, "\0", "\0"), Ok(()));
    assert_eq!(state.check_admin(&Caller::Anonymous), Ok(()));
    assert_eq!(state.token_key(), None);
}

#[test]
fn root_may_do_everything_and_others_what_their_roles_grant() {
    let mut state = enabled();
    allow(&mut state, "app", PermissionKind::ReadWrite, "app/", "app0");
    allow(&mut state, "app", PermissionKind::Read, "config/", "config0");
    let (root, app) = (caller(&state, ROOT), caller(&state, "app"));
    assert_eq!(write(&state, &root, "\0", "\0"), Ok(()));
    assert_eq!(state.check_admin(&root), Ok(()));
    assert_eq!(write(&state, &app, "app/x", ""), Ok(()));
    assert_eq!(read(&state, &app, "config/a", "config/z"), Ok(()));
    for refused in [
        write(&state, &app, "config/a", ""),
        read(&state, &app, "app/", "config0"),
        read(&state, &app, "a", ""),
        read(&state, &app, "app/", "\0"),
        state.check_admin(&app),
    ] {
        assert_eq!(refused, Err(AuthError::PermissionDenied));
    }
    assert_eq!(read(&state, &Caller::Anonymous, "app/x", ""), Err(AuthError::NoCaller));
}

#[test]
fn a_permission_of_the_same_range_is_replaced_and_only_that_range_can_be_taken_away() {
    let mut state = enabled();
    allow(&mut state, "app", PermissionKind::ReadWrite, "a", "c");
    allow(&mut state, "app", PermissionKind::Read, "a", "c");
    let app = caller(&state, "app");
    assert_eq!(write(&state, &app, "b", ""), Err(AuthError::PermissionDenied));
    assert_eq!(state.permissions_of("app").expect("exists").len(), 1);
    let revoke = |end: &'static str| AuthChange::RoleRevokePermission {
        role: "app".into(),
        key: "a".into(),
        range_end: end.into(),
    };
    let other = AuthError::PermissionNotGranted { role: "app".into() };
    assert_eq!(change(&mut state, revoke("b")), Err(other.into()));
    assert_eq!(change(&mut state, revoke("c")), Ok(()));
    assert_eq!(read(&state, &app, "b", ""), Err(AuthError::PermissionDenied));
}

#[test]
fn a_deleted_role_is_gone_from_its_users_and_one_of_the_same_name_is_another() {
    let mut state = enabled();
    allow(&mut state, "app", PermissionKind::Read, "a", "");
    let app = caller(&state, "app");
    assert_eq!(read(&state, &app, "a", ""), Ok(()));
    change(&mut state, AuthChange::RoleDelete { role: "app".into() }).expect("is deleted");
    assert_eq!(read(&state, &app, "a", ""), Err(AuthError::PermissionDenied));
    assert_eq!(state.roles_of("app"), Ok(Vec::new()));
    change(&mut state, AuthChange::RoleAdd { role: "app".into() }).expect("is added");
    allow(&mut state, "app", PermissionKind::Read, "a", "");
    assert_eq!(read(&state, &app, "a", ""), Err(AuthError::PermissionDenied));
}

#[test]
fn who_was_known_by_an_old_password_or_under_a_deleted_user_is_not_known_any_more() {
    let mut state = enabled();
    let before = caller(&state, "app");
    let new_password = || AuthChange::UserChangePassword { user: "app".into(), password_hash: "new".into() };
    change(&mut state, new_password()).expect("is changed");
    assert_eq!(state.check_user(&before), Err(AuthError::OldRevision));
    let now = caller(&state, "app");
    assert_eq!(state.check_user(&now), Ok(()));
    change(&mut state, AuthChange::UserDelete { user: "app".into() }).expect("is deleted");
    assert_eq!(state.check_user(&now), Err(AuthError::PermissionDenied));
    add(&mut state, "app");
    assert_eq!(state.check_user(&now), Err(AuthError::OldRevision), "another user of that name");
}

#[test]
fn a_role_that_is_granted_or_revoked_leaves_the_user_known() {
    let mut state = enabled();
    let app = caller(&state, "app");
    change(&mut state, AuthChange::RoleAdd { role: "more".into() }).expect("is added");
    grant(&mut state, "app", "more");
    assert_eq!(state.check_user(&app), Ok(()));
}

#[test]
fn the_last_way_in_is_not_taken_away_while_it_is_on() {
    let mut state = enabled();
    change(&mut state, AuthChange::RoleAdd { role: ROOT.into() }).expect("is added");
    for removal in [
        AuthChange::UserDelete { user: ROOT.into() },
        AuthChange::RoleDelete { role: ROOT.into() },
        AuthChange::UserRevokeRole { user: ROOT.into(), role: ROOT.into() },
    ] {
        assert_eq!(change(&mut state, removal.clone()), Err(AuthError::RootNeeded.into()));
        let mut off = state.clone();
        change(&mut off, AuthChange::Disable).expect("is disabled");
        assert_eq!(change(&mut off, removal), Ok(()));
    }
}

#[test]
fn refusals_name_what_is_missing_or_there_already() {
    let mut state = enabled();
    let revision = state.revision();
    let missing = || "nobody".to_owned();
    let table: [(AuthChange, StoreError); 9] = [
        (
            AuthChange::UserAdd { user: "app".into(), password_hash: None },
            AuthError::UserExists { user: "app".into() }.into(),
        ),
        (AuthChange::UserAdd { user: String::new(), password_hash: None }, AuthError::UserNameEmpty.into()),
        (
            AuthChange::UserAdd { user: "x".repeat(257), password_hash: None },
            StoreError::NameOutOfRange { seen: 257, limit: 256 },
        ),
        (AuthChange::UserDelete { user: missing() }, AuthError::UserNotFound { user: missing() }.into()),
        (
            AuthChange::UserGrantRole { user: "app".into(), role: missing() },
            AuthError::RoleNotFound { role: missing() }.into(),
        ),
        (
            AuthChange::UserRevokeRole { user: "app".into(), role: ROOT.into() },
            AuthError::RoleNotGranted { user: "app".into(), role: ROOT.into() }.into(),
        ),
        (AuthChange::RoleAdd { role: "app".into() }, AuthError::RoleExists { role: "app".into() }.into()),
        (AuthChange::RoleAdd { role: String::new() }, AuthError::RoleNameEmpty.into()),
        (AuthChange::RoleDelete { role: missing() }, AuthError::RoleNotFound { role: missing() }.into()),
    ];
    for (refused, error) in table {
        assert_eq!(change(&mut state, refused), Err(error));
    }
    for (key, end) in [("", "b"), ("b", "b"), ("b", "a")] {
        let permission = Permission { kind: PermissionKind::Read, key: key.into(), range_end: end.into() };
        let grant = AuthChange::RoleGrantPermission { role: "app".into(), permission };
        assert_eq!(change(&mut state, grant), Err(AuthError::EmptyRange.into()));
    }
    assert_eq!(state.revision(), revision, "a refusal changes nothing");
}

#[test]
fn tables_are_bounded() {
    let mut state = Arc::new(AuthState::default());
    change(&mut state, AuthChange::RoleAdd { role: "app".into() }).expect("is added");
    for at in 0..PERMISSIONS_MAX {
        let key = Bytes::from(format!("{at}"));
        let permission = Permission { kind: PermissionKind::Read, key, range_end: Bytes::new() };
        change(&mut state, AuthChange::RoleGrantPermission { role: "app".into(), permission }).expect("fits");
    }
    let permission =
        Permission { kind: PermissionKind::Read, key: "one more".into(), range_end: Bytes::new() };
    let refused = change(&mut state, AuthChange::RoleGrantPermission { role: "app".into(), permission });
    assert!(matches!(refused, Err(StoreError::Full { limit: 1000, .. })), "{refused:?}");
}

#[test]
fn all_permissions_together_are_bounded_in_bytes() {
    let mut state = Arc::new(AuthState::default());
    change(&mut state, AuthChange::RoleAdd { role: "app".into() }).expect("is added");
    let grant = |first: u8| {
        let key = Bytes::from([&[first][..], &vec![0; AUTH_BYTES_MAX / 2][..]].concat());
        let permission = Permission { kind: PermissionKind::Read, key, range_end: Bytes::new() };
        AuthChange::RoleGrantPermission { role: "app".into(), permission }
    };
    assert_eq!(change(&mut state, grant(1)), Ok(()));
    let refused = change(&mut state, grant(2));
    assert!(matches!(refused, Err(StoreError::Full { .. })), "{refused:?}");
}

#[test]
fn enabling_again_keeps_the_tokens_and_disabling_voids_them() {
    let mut state = enabled();
    let revision = state.revision();
    change(&mut state, AuthChange::Enable { token_key: "another".into() }).expect("does nothing");
    assert_eq!((state.token_key(), state.revision()), (Some(&b"key"[..]), revision));
    change(&mut state, AuthChange::Disable).expect("is disabled");
    assert_eq!((state.token_key(), state.revision()), (None, revision + 1));
    change(&mut state, AuthChange::Disable).expect("does nothing");
    assert_eq!(state.revision(), revision + 1);
}

#[test]
fn what_users_may_do_is_worked_out_anew_when_an_image_is_read() {
    let mut state = enabled();
    allow(&mut state, "app", PermissionKind::ReadWrite, "a", "c");
    assert_eq!(AuthState::decode(&state.encode()).as_ref(), Ok(&*state));
}
