//! The seam between the publisher and a Kafka cluster, so that tests can refuse, fence, lose answers and crash.

use super::cursor::Standing;
use super::fault::Doubt;
use crate::journal::Entry;

/// How records are put into batches: a broker refuses a batch as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Care {
    /// As large as the client makes them.
    #[default]
    Large,
    /// Well below every limit that is usual.
    Small,
    /// One record each: then who is refused is refused alone.
    Single,
}

/// A cluster that can be connected to.
pub(super) trait Sink: Send {
    /// Connects: the topics are there, nobody else produces under this identity, nothing of an earlier client is open.
    fn connect(&mut self, care: Care) -> Result<Box<dyn Session>, Doubt>;
}

/// One client's life. After any error but a refused record, which must be followed by `abort` or `renew`,
/// it must be dropped.
pub(super) trait Session {
    /// Which cluster it is.
    fn cluster_id(&self) -> &str;
    /// The committed cursor; `None` only if Kafka says that there is none.
    fn standing(&self) -> Result<Option<Standing>, Doubt>;
    /// Queues an event as it lies in the journal; begins a transaction if none is open.
    fn send(&mut self, entry: &Entry<'_>) -> Result<(), Doubt>;
    /// Waits until what was sent is acknowledged.
    fn delivered(&mut self) -> Result<(), Doubt>;
    /// Commits what was sent and the cursor, in one. Waits until it is acknowledged; nothing is committed if a record
    /// is refused.
    fn commit(&mut self, standing: &Standing) -> Result<(), Doubt>;
    /// Takes back what was sent since the last commit.
    fn abort(&mut self) -> Result<(), Doubt>;
    /// The same, and goes on with batches of another kind.
    fn renew(&mut self, care: Care) -> Result<(), Doubt>;
    /// Lets the client tell what happened meanwhile, so that nothing piles up in it.
    fn idle(&mut self);
}
