//! Work that blocks: reading and writing whole files, encoding a whole state.

/// Runs it on a thread of its own, so that nobody else waits for it. A runtime with a single thread belongs to a
/// test or a simulation: there it runs in place, since what another thread does meanwhile depends on chance.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let runtime = tokio::runtime::Handle::current();
    if runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::CurrentThread {
        return work();
    }
    // Nobody cancels it, so the only error is that it panicked, and then whoever asked for it does.
    match runtime.spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
