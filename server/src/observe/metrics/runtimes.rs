//! How much the runtimes of this process have to look after.

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::families::Families;

/// The runtimes that told of themselves. There are a few, and they live as long as the process.
static RUNTIMES: Mutex<Vec<Handle>> = Mutex::new(Vec::new());

/// Counts the tasks of a runtime from now on.
pub(crate) fn register(runtime: &tokio::runtime::Runtime) {
    RUNTIMES.lock().push(runtime.handle().clone());
}

pub(super) fn collect(families: &mut Families) {
    let tasks: usize = RUNTIMES
        .lock()
        .iter()
        .map(|runtime| runtime.metrics().num_alive_tasks())
        .sum();
    families.add("go_goroutines", tasks as f64);
}
