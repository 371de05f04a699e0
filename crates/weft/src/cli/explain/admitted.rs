//! Whether the sidecars of a service let a caller in: by what they say themselves, or by the documents of the mesh where none can
//! be asked.

use std::time::SystemTime;

use futures::future::join_all;
use serde_json::{Value, json};
use weft_client::Client;
use weft_core::tls::spiffe::SpiffeId;
use weft_meshconfig::lower::Lowered;
use weft_proxy::explain::{self, Caller, Sent};
use weft_proxy::health::SIDECAR_LABEL;
use weft_proxy::tls::mesh::SPIFFE_LABEL;

use crate::cli::admin::Admin;
use crate::cli::sidecars;
use crate::failure::Failure;

/// Sidecars of one service that are asked, all at once. Nearly always all say the same.
const ASKED_MAX: usize = 16;

/// What the sidecars of a backend say of the caller.
pub(super) async fn admission(
    client: &Client,
    documents: &Lowered,
    backend: &Value,
    caller: &Caller,
) -> Value {
    let service = backend["service"].as_str().unwrap_or_default();
    let endpoints: Vec<_> = backend["cluster"]["endpoints"].as_array().into_iter().flatten().collect();
    let labelled = |label: &str| endpoints.iter().filter(|e| e["metadata"][label].is_string()).count();
    let (all, behind) = (endpoints.len(), labelled(SIDECAR_LABEL));
    if behind == 0 && all > 0 {
        return json!({ "verdict": "ALLOW", "why": format!("no instance of {service} is behind a sidecar that could refuse it") });
    }
    let Ok(sent) = serde_json::from_value::<Sent>(backend["sent"].clone()) else {
        return json!({ "verdict": "DENY", "why": "the route makes no usable request of it" });
    };
    let mut told = match asked(client, service, &endpoints, caller, &sent).await {
        Ok(told) => told,
        Err(why) => {
            let mut told = by_documents(documents, service, (all, labelled(SPIFFE_LABEL)), caller, &sent);
            told["asked"] = format!("the documents alone: {why}").into();
            told
        }
    };
    if behind < all {
        note(
            &mut told,
            format!("{behind} of {all} instances are behind a sidecar; the others refuse nobody"),
        );
    }
    told
}

/// What those sidecars say that answer, or why none does.
async fn asked(
    client: &Client,
    service: &str,
    endpoints: &[&Value],
    caller: &Caller,
    sent: &Sent,
) -> Result<Value, String> {
    let mut instances = sidecars::of(client, service).await.map_err(|why| why.to_string())?;
    // The caller may know a part of them, or the request be for a part.
    let is_meant = |address: String| endpoints.iter().any(|endpoint| endpoint["address"] == *address);
    instances
        .retain(|i| endpoints.is_empty() || i.address.is_some_and(|address| is_meant(address.to_string())));
    instances.sort_by_key(|instance| instance.sidecar.is_err());
    let mut question = sent.question();
    question.extend(caller.identity.as_ref().map(|id| ("identity", id.to_string())));
    question.extend(caller.ip.map(|ip| ("address", ip.to_string())));
    let question = &question;
    let answers = instances.into_iter().take(ASKED_MAX).map(async |instance| {
        let answer = match instance.sidecar {
            Ok(admin) => ask(admin, question).await.map_err(|why| why.to_string()),
            Err(why) => Err(why),
        };
        (instance.id, answer)
    });
    merged(join_all(answers).await).map_err(|why| why.unwrap_or(format!("{service} has no instances")))
}

async fn ask(sidecar: Admin, question: &[(&'static str, String)]) -> Result<Value, Failure> {
    let text = sidecar.get_whole("/admission", question).await?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(format!("the answer of the sidecar at {} cannot be read: {error}", sidecar.0))
    })
}

/// What is said alike, with who says it. If some let the caller in and others do not, it is what those say that do, and what
/// the others say stands in `differs`.
fn merged(answers: Vec<(String, Result<Value, String>)>) -> Result<Value, Option<String>> {
    let mut groups: Vec<(Value, Vec<String>)> = Vec::new();
    let mut deaf = None;
    for (id, answer) in answers {
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                deaf.get_or_insert(why);
                continue;
            }
        };
        let alike = |told: &Value| ["verdict", "status", "why"].iter().all(|key| told[key] == answer[key]);
        match groups.iter_mut().find(|(told, _)| alike(told)) {
            Some((_, ids)) => ids.push(id),
            None => groups.push((answer, vec![id])),
        }
    }
    if groups.is_empty() {
        return Err(deaf.map(|why| first_line(&why)));
    }
    let first = groups.iter().position(|(told, _)| told["verdict"] != "DENY").unwrap_or(0);
    let (mut told, ids) = groups.remove(first);
    let sidecars = if ids.len() == 1 { "sidecar" } else { "sidecars" };
    told["asked"] = format!("the {sidecars} of {}", ids.join(", ")).into();
    let differing = groups.iter().map(|(other, ids)| {
        json!({ "instances": ids, "verdict": other["verdict"], "status": other["status"], "why": other["why"] })
    });
    told["differs"] = differing.collect::<Vec<_>>().into();
    if let Some(why) = deaf {
        note(&mut told, format!("not all sidecars can be asked: {}", first_line(&why)));
    }
    Ok(told)
}

/// A sidecar that does not know the question answers with all that it knows.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// By what the mesh says of the service. `named`: how many of its instances are advertised with an identity, and so take TLS.
fn by_documents(
    documents: &Lowered,
    service: &str,
    (all, named): (usize, usize),
    caller: &Caller,
    sent: &Sent,
) -> Value {
    // A certificate is shown to those that ask for one.
    let anonymous = Caller { identity: None, ..caller.clone() };
    let seen = if named > 0 { caller } else { &anonymous };
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let mut told = explain::admission(documents.guard(service).as_ref(), seen, sent, now);
    match caller.identity.as_ref().map(SpiffeId::as_str) {
        Some(_) if named == 0 => {
            note(
                &mut told,
                "its sidecars speak no TLS with others, so they do not know who calls".to_owned(),
            );
        }
        Some(_) if named < all => {
            let why = format!("{named} of {all} sidecars speak TLS; to the others the caller is nobody");
            note(&mut told, why);
        }
        None if named > 0 => note(
            &mut told,
            "a sidecar with --mesh-mode strict takes no connection of a caller without a certificate"
                .to_owned(),
        ),
        _ => {}
    }
    told
}

/// Beside what is noted already.
fn note(told: &mut Value, text: String) {
    let before = told["note"].as_str().map(|before| format!("{before}; ")).unwrap_or_default();
    told["note"] = format!("{before}{text}").into();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A verdict and why, or why there is none.
    type Answer = Result<(&'static str, &'static str), &'static str>;

    fn told(answers: &[(&str, Answer)]) -> Result<Value, Option<String>> {
        let answer = |(verdict, why): (&str, &str)| json!({ "verdict": verdict, "why": why });
        let answers = answers.iter().map(|(id, a)| ((*id).to_owned(), a.map(answer).map_err(str::to_owned)));
        merged(answers.collect())
    }

    #[test]
    fn what_sidecars_say_alike_is_told_once_and_what_others_say_beside_it() {
        let (strict, open) = (Ok(("DENY", "strict")), Ok(("ALLOW", "open")));
        let all = told(&[("one", strict), ("two", strict)]).unwrap();
        assert_eq!((&all["verdict"], &all["asked"]), (&"DENY".into(), &"the sidecars of one, two".into()));
        assert_eq!((&all["differs"], &all["note"]), (&json!([]), &Value::Null));

        let some = told(&[("one", strict), ("two", open), ("three", Err("deaf\nas a post"))]).unwrap();
        assert_eq!((&some["verdict"], &some["asked"]), (&"ALLOW".into(), &"the sidecar of two".into()));
        assert_eq!(
            some["differs"],
            json!([{ "instances": ["one"], "verdict": "DENY", "status": null, "why": "strict" }])
        );
        assert_eq!(some["note"], "not all sidecars can be asked: deaf");
    }

    #[test]
    fn if_none_answers_the_first_reason_is_told() {
        assert_eq!(told(&[("one", Err("deaf")), ("two", Err("dumb"))]), Err(Some("deaf".to_owned())));
        assert_eq!(told(&[]), Err(None));
    }
}
