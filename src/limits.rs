//! Rates: how often an address, a pixel or a token may ask. Per node, shared by its workers, bounded memory and work.
//!
//! GCRA (governor) decides; the time is given. A key leaves no trace but a hash, in a table of fixed size: each hash
//! has a set of places, an idle one is taken over, and a key that finds all of its set busy is let through uncounted.
//! So no flood of addresses grows the memory, makes anybody wait, or refuses a visitor who did nothing.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ahash::RandomState;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

use crate::pixel::PixelId;

/// Keys that can be told apart at once, of addresses: 2 MiB. At the default rate one is busy for 5 ms a request, so
/// this is more than 26 million requests a second from different addresses.
const ADDRESSES: usize = 1 << 17;
/// Of pixels.
const PIXELS: usize = 1 << 16;
/// Of management's addresses and of its tokens.
const MANAGEMENT: usize = 1 << 12;
/// Places that a hash may take, looked through one by one: two cache lines.
const SET: usize = 8;
/// Locks of a table: more than there are cores, so that two rarely meet.
const SHARDS: usize = 256;
/// A full bucket refills within this; what is configured longer is cut, far below where nanoseconds overflow.
const LONGEST_WINDOW: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// So many per period, and so many at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Refilled in each period.
    pub count: u32,
    /// A second, a minute or an hour.
    pub period: Duration,
    /// Most at once.
    pub burst: u32,
}

/// `limits.mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Refuse what is over.
    Enforce,
    /// Count what would have been refused.
    Observe,
    /// Nothing is limited or counted.
    Off,
}

/// The operator's words; `None` is `"off"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// `limits.mode`.
    pub mode: Mode,
    /// `limits.per_ip`.
    pub per_ip: Option<Rate>,
    /// `limits.per_pixel`.
    pub per_pixel: Option<Rate>,
    /// `limits.management`: per address, and per token.
    pub management: Option<Rate>,
}

impl Options {
    /// Nothing is limited.
    pub const OFF: Options = Options { mode: Mode::Off, per_ip: None, per_pixel: None, management: None };
}

/// A request over a limit: what its answer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Over {
    /// Which limit, as in the key `limits.<name>`.
    pub limit: &'static str,
    /// Most at once.
    pub quota: u32,
    /// Seconds in which the whole quota comes back.
    pub window_seconds: u64,
    /// Whole seconds, at least one, until a request may be let through.
    pub retry_seconds: u64,
}

/// The node's limits.
#[derive(Debug)]
pub struct Limits {
    enforces: bool,
    hasher: RandomState,
    per_ip: Option<Limit>,
    per_pixel: Option<Limit>,
    management_address: Option<Limit>,
    management_token: Option<Limit>,
    hits: [AtomicU64; 3],
}

const PER_IP: usize = 0;
const PER_PIXEL: usize = 1;
const MANAGEMENT_HITS: usize = 2;
/// Names of the limits.
const NAMES: [&str; 3] = ["per_ip", "per_pixel", "management"];

impl Limits {
    /// All tables empty.
    pub fn new(options: &Options) -> Limits {
        let limit = |which, places, rate: Option<Rate>| {
            let rate = rate.filter(|_| options.mode != Mode::Off)?;
            Some(Limit::new(which, places, rate))
        };
        Limits {
            enforces: options.mode == Mode::Enforce,
            hasher: RandomState::new(),
            per_ip: limit(PER_IP, ADDRESSES, options.per_ip),
            per_pixel: limit(PER_PIXEL, PIXELS, options.per_pixel),
            management_address: limit(MANAGEMENT_HITS, MANAGEMENT, options.management),
            management_token: limit(MANAGEMENT_HITS, MANAGEMENT, options.management),
            hits: Default::default(),
        }
    }

    /// Whether pixels are limited at all.
    pub fn has_per_pixel(&self) -> bool {
        self.per_pixel.is_some()
    }

    /// A visitor's request at `now`, a monotonic time.
    pub fn visitor(&self, ip: IpAddr, now: Duration) -> Result<(), Over> {
        self.ask(&self.per_ip, || self.address_key(ip), now)
    }

    /// An event of a pixel.
    pub fn pixel(&self, id: PixelId, now: Duration) -> Result<(), Over> {
        self.ask(&self.per_pixel, || self.hasher.hash_one(id), now)
    }

    /// A management request, by its address and by its token's hash.
    pub fn management(&self, ip: Option<IpAddr>, token: Option<&[u8; 32]>, now: Duration) -> Result<(), Over> {
        if let Some(ip) = ip {
            self.ask(&self.management_address, || self.address_key(ip), now)?;
        }
        token.map_or(Ok(()), |token| self.ask(&self.management_token, || self.hasher.hash_one(token), now))
    }

    /// Requests over each limit, by its name, refused or not.
    pub fn hits(&self) -> [(&'static str, u64); 3] {
        std::array::from_fn(|limit| (NAMES[limit], self.hits[limit].load(Ordering::Relaxed)))
    }

    /// What each limit lets through a second in the long run, by its name; `None` where nothing is refused.
    pub fn rates(&self) -> [(&'static str, Option<f64>); 3] {
        let limits = [&self.per_ip, &self.per_pixel, &self.management_token];
        std::array::from_fn(|at| {
            (NAMES[at], limits[at].as_ref().filter(|_| self.enforces).map(|limit| limit.per_second))
        })
    }

    /// IPv4 by address; IPv6 by /64, which is what one subscriber gets.
    fn address_key(&self, ip: IpAddr) -> u64 {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.hasher.hash_one((4u8, u64::from(ip.to_bits()))),
            IpAddr::V6(ip) => self.hasher.hash_one((6u8, (ip.to_bits() >> 64) as u64)),
        }
    }

    fn ask(&self, limit: &Option<Limit>, key: impl FnOnce() -> u64, now: Duration) -> Result<(), Over> {
        let Some(limit) = limit else { return Ok(()) };
        let Err(wait) = limit.ask(key(), now) else { return Ok(()) };
        self.hits[limit.which].fetch_add(1, Ordering::Relaxed);
        if self.enforces { Err(limit.over(wait)) } else { Ok(()) }
    }
}

/// One limit with its table.
#[derive(Debug)]
struct Limit {
    which: usize,
    per_second: f64,
    quota: u32,
    window: Duration,
    limiter: RateLimiter<Ask, Table, Given, NoOpMiddleware<Nanos>>,
}

impl Limit {
    fn new(which: usize, places: usize, rate: Rate) -> Limit {
        let per_one = (rate.period / rate.count.max(1)).max(Duration::from_nanos(1));
        let longest = LONGEST_WINDOW.as_nanos() / per_one.as_nanos();
        let burst = u128::from(rate.burst).clamp(1, longest.max(1)) as u32;
        let quota = Quota::with_period(per_one).expect("it is at least a nanosecond");
        let quota = quota.allow_burst(NonZeroU32::new(burst).expect("it is at least one"));
        Limit {
            which,
            per_second: f64::from(rate.count) / rate.period.as_secs_f64(),
            quota: burst,
            window: per_one * burst,
            limiter: RateLimiter::new(quota, Table::new(places), Given),
        }
    }

    fn ask(&self, key: u64, now: Duration) -> Result<(), Duration> {
        // From one on: a place that holds zero was never used.
        let now = (now.as_nanos() as u64).saturating_add(1);
        self.limiter.check_key(&Ask { key, now }).map_err(|refused| refused.wait_time_from(Given.now()))
    }

    fn over(&self, wait: Duration) -> Over {
        Over {
            limit: NAMES[self.which],
            quota: self.quota,
            window_seconds: seconds_up(self.window),
            retry_seconds: seconds_up(wait),
        }
    }
}

/// Whole seconds that are not too few, at least one.
fn seconds_up(span: Duration) -> u64 {
    (span.as_secs() + u64::from(span.subsec_nanos() > 0)).max(1)
}

/// A hashed key and the time of the question.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Ask {
    key: u64,
    now: u64,
}

/// For governor it is always the present: the table keeps time relative to the question, which brings its own.
#[derive(Clone, Copy, Debug)]
struct Given;

impl Clock for Given {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(0)
    }
}

/// A place: a key, and the time (in nanoseconds) until which it is busy. Idle places are as good as empty ones.
type Place = [u64; 2];

/// A part of a table with its lock, in a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Shard(Mutex<Vec<Place>>);

/// Busy keys in a fixed number of places, in sets.
#[derive(Debug)]
struct Table(Vec<Shard>);

impl Table {
    /// Memory is taken from the system as places are first used.
    fn new(places: usize) -> Table {
        let each = (places / SHARDS).next_multiple_of(SET);
        Table((0..SHARDS).map(|_| Shard(Mutex::new(vec![[0; 2]; each]))).collect())
    }
}

impl StateStore for Table {
    type Key = Ask;

    fn measure_and_replace<T, F, E>(&self, ask: &Ask, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let Ask { key, now } = *ask;
        let shard = &self.0[key as usize % SHARDS].0;
        // For some ten loads and stores; a panic between them leaves nothing half done that matters.
        let mut places = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let set = (key as usize / SHARDS) % (places.len() / SET) * SET;
        let places = &mut places[set..set + SET];
        let place = match places.iter().position(|place| place[0] == key && place[1] > now) {
            Some(place) => Some(place),
            None => places.iter().position(|place| place[1] <= now),
        };
        let Some([owner, busy_until]) = place.map(|place| &mut places[place]) else {
            // All are busy: a visitor isn't refused for others' sake.
            return decide(None).map(|(allowed, _)| allowed);
        };
        let busy = (*owner == key && *busy_until > now).then(|| Nanos::from(*busy_until - now));
        let (allowed, next) = decide(busy)?;
        (*owner, *busy_until) = (key, now.saturating_add(next.as_u64()));
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(count: u32, period: Duration, burst: u32) -> Option<Rate> {
        Some(Rate { count, period, burst })
    }

    fn limits(mode: Mode, per_ip: Option<Rate>) -> Limits {
        Limits::new(&Options { mode, per_ip, per_pixel: per_ip, management: per_ip })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let limits = limits(Mode::Enforce, rate(200, SECOND, 1000));
        let mut now = SECOND;
        for _ in 0..1000 {
            assert_eq!(limits.visitor(ip("192.0.2.1"), now), Ok(()));
        }
        let over = Over { limit: "per_ip", quota: 1000, window_seconds: 5, retry_seconds: 1 };
        assert_eq!(limits.visitor(ip("192.0.2.1"), now), Err(over));
        assert_eq!(limits.visitor(ip("192.0.2.2"), now), Ok(()));
        for _ in 0..10 {
            now += Duration::from_millis(5);
            assert_eq!(limits.visitor(ip("192.0.2.1"), now), Ok(()));
            assert_eq!(limits.visitor(ip("192.0.2.1"), now), Err(over));
        }
        assert_eq!(limits.hits(), [("per_ip", 11), ("per_pixel", 0), ("management", 0)]);
        // The whole burst comes back in its window.
        now += 5 * SECOND;
        for _ in 0..1000 {
            assert_eq!(limits.visitor(ip("192.0.2.1"), now), Ok(()));
        }
        assert_eq!(limits.visitor(ip("192.0.2.1"), now), Err(over));
    }

    #[test]
    fn the_wait_is_told_in_whole_seconds() {
        let limits = limits(Mode::Enforce, rate(2, 60 * SECOND, 1));
        let ask = |ms| limits.visitor(ip("192.0.2.1"), Duration::from_millis(ms)).map_err(|over| over.retry_seconds);
        assert_eq!([ask(0), ask(1), ask(1000), ask(29_500), ask(30_000)], [Ok(()), Err(30), Err(29), Err(1), Ok(())]);
    }

    #[test]
    fn ipv6_goes_by_its_64_and_ipv4_is_one_in_any_dress() {
        let limits = limits(Mode::Enforce, rate(1, SECOND, 1));
        let passes = |text| limits.visitor(ip(text), SECOND).is_ok();
        assert!(passes("2001:db8:0:1::1") && !passes("2001:db8:0:1:ffff::2") && passes("2001:db8:0:2::1"));
        assert!(passes("192.0.2.1") && !passes("::ffff:192.0.2.1") && passes("192.0.2.2"));
        // An IPv6 network with the bits of an IPv4 address is another one.
        assert!(passes("::c000:201:0:0:0:1"));
    }

    #[test]
    fn observing_counts_and_off_does_nothing() {
        for (mode, hits) in [(Mode::Observe, 9), (Mode::Off, 0)] {
            let limits = limits(mode, rate(1, SECOND, 1));
            for _ in 0..10 {
                assert_eq!(limits.visitor(ip("192.0.2.1"), SECOND), Ok(()));
            }
            assert_eq!(limits.hits()[PER_IP], ("per_ip", hits));
            assert_eq!(limits.rates()[PER_IP], ("per_ip", None), "nothing is refused");
        }
        let none = limits(Mode::Enforce, None);
        assert!((0..5000).all(|_| none.visitor(ip("192.0.2.1"), SECOND).is_ok()) && !none.has_per_pixel());
    }

    #[test]
    fn the_rates_are_told_as_they_were_given() {
        let limits = limits(Mode::Enforce, rate(90, 60 * SECOND, 7));
        assert_eq!(limits.rates()[PER_IP], ("per_ip", Some(1.5)));
        let none = Limits::new(&Options::OFF);
        assert_eq!(none.rates(), NAMES.map(|name| (name, None)));
    }

    #[test]
    fn management_goes_by_address_and_by_token() {
        let limits = limits(Mode::Enforce, rate(1, SECOND, 2));
        let ask = |address, token: u8| limits.management(Some(ip(address)), Some(&[token; 32]), SECOND).is_ok();
        assert!(ask("192.0.2.1", 1) && ask("192.0.2.1", 2) && !ask("192.0.2.1", 3));
        assert!(ask("192.0.2.2", 1) && !ask("192.0.2.3", 1) && ask("192.0.2.3", 2));
        assert_eq!(limits.hits()[MANAGEMENT_HITS], ("management", 2));
    }

    #[test]
    fn a_flood_of_addresses_meets_a_table_that_neither_grows_nor_forgets_the_busy() {
        let limits = limits(Mode::Enforce, rate(1, 3600 * SECOND, 1));
        let greedy = ip("192.0.2.1");
        assert!(limits.visitor(greedy, SECOND).is_ok());
        let mut refused = 0;
        for address in 0..4 * ADDRESSES as u32 {
            refused += u32::from(limits.visitor(IpAddr::V4((0x0A00_0000 + address).into()), SECOND).is_err());
        }
        assert_eq!(refused, 0, "nobody is refused for others' sake");
        assert!(limits.visitor(greedy, SECOND).is_err());
        let table = limits.per_ip.unwrap().limiter.into_state_store();
        let places: usize = table.0.iter().map(|shard| shard.0.lock().unwrap().capacity()).sum();
        assert_eq!(places, ADDRESSES);
    }

    #[test]
    fn absurd_rates_overflow_nothing() {
        let absurd = [rate(1, 3600 * SECOND, u32::MAX), rate(u32::MAX, SECOND, u32::MAX), rate(u32::MAX, SECOND, 1)];
        for rate in absurd {
            let limits = limits(Mode::Enforce, rate);
            for now in [Duration::ZERO, SECOND, Duration::from_secs(u64::from(u32::MAX))] {
                assert_eq!(limits.visitor(ip("192.0.2.1"), now), Ok(()));
            }
        }
    }

    #[test]
    fn workers_share_one_limit() {
        let limits = limits(Mode::Enforce, rate(1, 3600 * SECOND, 500));
        let passed = || (0..1000).filter(|_| limits.visitor(ip("192.0.2.1"), SECOND).is_ok()).count();
        let passed: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(passed)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(passed, 500);
    }

    proptest! {
        /// Never more than the burst and what the rate refills, whatever the pauses, also when time stands still.
        #[test]
        fn no_more_than_burst_and_rate(
            count in 1u32..500, burst in 1u32..200, pauses in proptest::collection::vec(0u64..20_000, 1..400),
        ) {
            let limits = limits(Mode::Enforce, rate(count, SECOND, burst));
            let (mut now_us, mut passed) = (7_000_000, 0u64);
            for pause_us in pauses {
                now_us += pause_us;
                passed += u64::from(limits.visitor(ip("192.0.2.1"), Duration::from_micros(now_us)).is_ok());
                let refilled = (now_us - 7_000_000) * u64::from(count) / 1_000_000;
                prop_assert!(passed <= u64::from(burst) + refilled + 1);
            }
        }
    }
}
