//! The mesh's configuration: checked here, stored by one command, pushed over xDS.

use tonic::{Request, Response as Reply, Status};
use weft_meshconfig::Kind;
use weft_state::command::{Command, Response, Revision, SetMeshConfig};
use weft_state::error::StoreError;
use weft_state::machine::{Machine, MeshDocument};
use weft_xds_proto::weft as pb;

use super::{Asking, WeftApi, unexpected};
use crate::api::status;
use crate::meshconfig::{self, Found};

/// Tries when others change the configuration at the same time.
const TRIES_MAX: usize = 8;

#[tonic::async_trait]
impl pb::mesh_config_server::MeshConfig for WeftApi {
    async fn apply(
        &self,
        request: Request<pb::ApplyConfigRequest>,
    ) -> Result<Reply<pb::ApplyConfigResponse>, Status> {
        self.admit_user(request.metadata()).await?;
        let asking = self.asking(request.metadata()).await?;
        let pb::ApplyConfigRequest { documents, dry_run } = request.into_inner();
        let documents = match meshconfig::read(&documents) {
            Ok(documents) => documents,
            Err(found) => return Ok(Reply::new(refused(found))),
        };
        for _ in 0..TRIES_MAX {
            let (generation, stored) = self.mesh_config().await?;
            let checked = match meshconfig::check_apply(&documents, generation, &stored) {
                Ok(checked) => checked,
                Err(found) => return Ok(Reply::new(refused(found))),
            };
            let outcomes =
                documents.iter().zip(&checked.outcomes).map(|(document, outcome)| pb::ConfigOutcome {
                    kind: document.kind.to_string(),
                    name: document.name.clone(),
                    outcome: outcome.as_str().to_owned(),
                });
            let outcomes = outcomes.collect();
            let revision = if dry_run || checked.command.changes.is_empty() {
                generation
            } else {
                match self.set(&asking, checked.command).await? {
                    Some(revision) => revision,
                    None => continue,
                }
            };
            return Ok(Reply::new(pb::ApplyConfigResponse { problems: Vec::new(), outcomes, revision }));
        }
        Err(contended())
    }

    async fn list(
        &self,
        request: Request<pb::ListConfigRequest>,
    ) -> Result<Reply<pb::ListConfigResponse>, Status> {
        self.admit_user(request.metadata()).await?;
        let pb::ListConfigRequest { kind, name } = request.into_inner();
        let kind = if kind.is_empty() { None } else { Some(known_kind(&kind)?) };
        let (revision, stored) = self.mesh_config().await?;
        let documents = stored
            .into_iter()
            .filter(|d| kind.is_none_or(|kind| d.kind == kind.as_str()))
            .filter(|d| name.is_empty() || d.name == name)
            .map(|d| pb::ConfigDocument {
                kind: d.kind,
                name: d.name,
                json: d.document,
                create_revision: d.create_revision,
                mod_revision: d.mod_revision,
                version: d.version,
            });
        Ok(Reply::new(pb::ListConfigResponse { documents: documents.collect(), revision }))
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteConfigRequest>,
    ) -> Result<Reply<pb::DeleteConfigResponse>, Status> {
        self.admit_user(request.metadata()).await?;
        let asking = self.asking(request.metadata()).await?;
        let pb::DeleteConfigRequest { kind, name } = request.into_inner();
        let kind = known_kind(&kind)?;
        for _ in 0..TRIES_MAX {
            let (generation, stored) = self.mesh_config().await?;
            let command = match meshconfig::check_delete(kind, &name, generation, &stored) {
                Ok(Some(command)) => command,
                Ok(None) => {
                    let names: Vec<_> =
                        stored.iter().filter(|d| d.kind == kind.as_str()).map(|d| d.name.as_str()).collect();
                    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                    return Err(Status::not_found(format!("no {kind} {name:?}; known: {known}")));
                }
                Err(found) => {
                    let text: Vec<_> = found.iter().map(|(_, problem)| problem.to_string()).collect();
                    return Err(Status::failed_precondition(text.join("; ")));
                }
            };
            if let Some(revision) = self.set(&asking, command).await? {
                return Ok(Reply::new(pb::DeleteConfigResponse { revision }));
            }
        }
        Err(contended())
    }
}

impl WeftApi {
    /// The configuration as a majority has it.
    async fn mesh_config(&self) -> Result<(Revision, Vec<MeshDocument>), Status> {
        self.coordinator.read_barrier().await.map_err(|e| status::propose(&e))?;
        Ok(self.coordinator.read(Machine::mesh_config))
    }

    /// None: somebody else was first.
    async fn set(&self, asking: &Asking, command: SetMeshConfig) -> Result<Option<Revision>, Status> {
        let proposed = self.propose(asking, Command::SetMeshConfig(command)).await?;
        match proposed.response {
            Ok(Response::SetMeshConfig) => Ok(Some(proposed.revision)),
            Ok(other) => Err(unexpected(&other)),
            Err(StoreError::MeshConfigChanged { .. }) => Ok(None),
            Err(error) => Err(status::store(&error)),
        }
    }
}

fn contended() -> Status {
    Status::aborted(format!("the configuration changed {TRIES_MAX} times meanwhile; try again"))
}

fn known_kind(kind: &str) -> Result<Kind, Status> {
    Kind::named(kind).ok_or_else(|| {
        let kinds = Kind::ALL.map(Kind::as_str).join(", ");
        Status::invalid_argument(format!("kind: {kind:?}, allowed are {kinds}"))
    })
}

fn refused(found: Vec<Found>) -> pb::ApplyConfigResponse {
    let problems = found.into_iter().map(|(document, problem)| pb::ConfigProblem {
        document: document.map_or(-1, |i| i32::try_from(i).unwrap_or(i32::MAX)),
        path: problem.at,
        key: problem.key.unwrap_or_default(),
        message: problem.message,
    });
    pb::ApplyConfigResponse { problems: problems.collect(), ..pb::ApplyConfigResponse::default() }
}
