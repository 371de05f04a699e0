//! Both spellings of an instance id (ruling D9).

use weft_state::machine::{Machine, Registered};

/// The ids that a path may mean, in the order in which they are tried: as written; with the service's name
/// in front; without it.
pub fn spellings(service: &str, id: &str) -> Vec<String> {
    let mut all = vec![id.to_owned(), format!("{service}-{id}")];
    if let Some(short) = id.strip_prefix(service).and_then(|rest| rest.strip_prefix('-'))
        && !short.is_empty()
    {
        all.push(short.to_owned());
    }
    all
}

/// The registered instance that a path means.
pub fn find(machine: &Machine, service: &str, id: &str) -> Option<Registered> {
    spellings(service, id).iter().find_map(|id| machine.registered_instance(service, id))
}

#[cfg(test)]
mod tests {
    use weft_state::command::{Command, Register, RegisteredInstance};

    use super::*;

    fn found(ids: &[&str], id: &str) -> Option<String> {
        let mut machine = Machine::new();
        for (index, instance_id) in (1u64..).zip(ids) {
            let instance = RegisteredInstance {
                service: "user-service".into(),
                instance_id: (*instance_id).into(),
                host: "127.0.0.1".into(),
                port: 1,
                metadata: Default::default(),
                health_path: None,
                ttl_secs: 30,
            };
            let register = Register { instance, lease: i64::try_from(index).unwrap(), ttl_secs: 30 };
            machine.apply(index, 1, &Command::Register(register)).response.unwrap();
        }
        find(&machine, "user-service", id).map(|r| r.instance.instance_id.clone())
    }

    #[test]
    fn the_short_id_finds_the_long_one_and_the_other_way_round() {
        assert_eq!(found(&["user-service-abc123"], "abc123").as_deref(), Some("user-service-abc123"));
        assert_eq!(found(&["abc123"], "user-service-abc123").as_deref(), Some("abc123"));
    }

    #[test]
    fn the_exact_id_wins_over_another_spelling() {
        let both = ["abc123", "user-service-abc123"];
        assert_eq!(found(&both, "abc123").as_deref(), Some("abc123"));
        assert_eq!(found(&both, "user-service-abc123").as_deref(), Some("user-service-abc123"));
    }

    #[test]
    fn other_ids_are_not_found() {
        assert_eq!(found(&["user-service-abc123"], "abc12"), None);
        assert_eq!(found(&["user-service-abc123"], "user-service-"), None);
        assert_eq!(found(&[], "abc123"), None);
    }
}
