//! The bytes on disk: segment header, batch header, record. Little-endian, fixed widths, CRC32C.
//!
//! The checksum of a batch is seeded by journal and segment, so that a batch of another file can't pass as this one's.
//! docs/journal-format.md is the table of these offsets; the known-answer test below pins them.

use crate::record::{Head, Kind, Position};

/// Format written by this program. A higher one in a directory means a newer program wrote it.
pub const FORMAT: u32 = 1;
/// Bytes before the first batch of a segment: two copies of the header, half of this apart.
pub const SEGMENT_HEADER_BYTES: u64 = 4096;
/// Bytes before the records of a batch.
pub const BATCH_HEADER_BYTES: usize = 64;
/// Bytes before key and body of a record.
pub const RECORD_HEADER_BYTES: usize = 32;
/// Longest record with its header: bounds what one append can waste at the end of a segment.
pub const MAX_RECORD_BYTES: usize = 112 * 1024;
/// Longest batch with its header: bounds a reader's buffer.
pub const MAX_BATCH_BYTES: usize = 2 * 1024 * 1024;

/// Starts each batch. 0xFF and 0xFE never occur in UTF-8, so no request can plant it in a body.
pub const BATCH_MAGIC: [u8; 4] = [0xFF, b'P', b'B', 0xFE];
const SEGMENT_MAGIC: [u8; 8] = [0xFF, b'P', b'X', b'G', b'S', b'E', b'G', 0xFE];
const HEADER_COPY_BYTES: usize = 84;

/// The identity and place of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Which journal it belongs to.
    pub journal_id: [u8; 16],
    /// Which run of the program wrote it.
    pub incarnation: [u8; 16],
    /// Number of the segment, as in its name.
    pub seq: u64,
    /// Position of its first record. Everything before it is durable.
    pub base: Position,
    /// Event records before `base`.
    pub events_before: u64,
    /// Unix milliseconds of its creation.
    pub created_ms: u64,
}

/// What a segment's first block says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderRead {
    /// A valid copy.
    Valid(SegmentHeader),
    /// Written by a newer program: its format number.
    Newer(u32),
    /// Neither copy is readable.
    Bad,
}

impl SegmentHeader {
    /// The whole header block.
    pub fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(HEADER_COPY_BYTES);
        copy.extend_from_slice(&SEGMENT_MAGIC);
        copy.extend_from_slice(&FORMAT.to_le_bytes());
        copy.extend_from_slice(&(SEGMENT_HEADER_BYTES as u32).to_le_bytes());
        copy.extend_from_slice(&self.journal_id);
        copy.extend_from_slice(&self.incarnation);
        for number in [self.seq, self.base.0, self.events_before, self.created_ms] {
            copy.extend_from_slice(&number.to_le_bytes());
        }
        copy.extend_from_slice(&crc32c::crc32c(&copy).to_le_bytes());
        let mut block = vec![0; SEGMENT_HEADER_BYTES as usize];
        for start in [0, SEGMENT_HEADER_BYTES as usize / 2] {
            block[start..start + HEADER_COPY_BYTES].copy_from_slice(&copy);
        }
        block
    }

    /// Reads either copy of a header block.
    pub fn decode(block: &[u8]) -> HeaderRead {
        let mut newer = [None; 2];
        for (copy, start) in [0, SEGMENT_HEADER_BYTES as usize / 2].into_iter().enumerate() {
            let says_newer = &mut newer[copy];
            let Some(copy) = block.get(start..start + HEADER_COPY_BYTES) else { continue };
            if copy[..8] != SEGMENT_MAGIC {
                continue;
            }
            let format = u32_at(copy, 8);
            if format > FORMAT {
                // The checksum of another format may lie elsewhere, so it can't be asked.
                *says_newer = Some(format);
            }
            if format != FORMAT || crc32c::crc32c(&copy[..HEADER_COPY_BYTES - 4]) != u32_at(copy, 80) {
                continue;
            }
            return HeaderRead::Valid(SegmentHeader {
                journal_id: bytes_at(copy, 16),
                incarnation: bytes_at(copy, 32),
                seq: u64_at(copy, 48),
                base: Position(u64_at(copy, 56)),
                events_before: u64_at(copy, 64),
                created_ms: u64_at(copy, 72),
            });
        }
        // Both copies must say so, or a flipped bit could keep the gateway from starting.
        match newer {
            [Some(format), Some(second)] if format == second => HeaderRead::Newer(format),
            _ => HeaderRead::Bad,
        }
    }
}

/// The checksum seed of all batches of one segment.
pub fn seed(journal_id: &[u8; 16], seq: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(journal_id), &seq.to_le_bytes())
}

/// The head of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// Position of its first record.
    pub base: Position,
    /// Event records before `base`.
    pub events_before: u64,
    /// Everything before this position was durable when the batch was written.
    pub synced_to: Position,
    /// Unix milliseconds of writing.
    pub time_ms: u64,
    /// Bytes of records behind the header.
    pub payload_bytes: u32,
    /// Records in it; 0 for a mark that only carries `synced_to`.
    pub count: u32,
    /// Event records among them.
    pub events: u32,
    /// First half of the run's incarnation.
    pub incarnation: [u8; 8],
}

impl BatchHeader {
    /// Fills the first [`BATCH_HEADER_BYTES`] of `batch`, whose rest is the payload, checksum included.
    pub fn seal(&self, batch: &mut [u8], seed: u32) {
        assert_eq!(
            batch.len(),
            BATCH_HEADER_BYTES + self.payload_bytes as usize,
            "payload_bytes is the payload's length"
        );
        batch[..4].copy_from_slice(&BATCH_MAGIC);
        batch[8..16].copy_from_slice(&self.base.0.to_le_bytes());
        batch[16..24].copy_from_slice(&self.events_before.to_le_bytes());
        batch[24..32].copy_from_slice(&self.synced_to.0.to_le_bytes());
        batch[32..40].copy_from_slice(&self.time_ms.to_le_bytes());
        batch[40..44].copy_from_slice(&self.payload_bytes.to_le_bytes());
        batch[44..48].copy_from_slice(&self.count.to_le_bytes());
        batch[48..52].copy_from_slice(&self.events.to_le_bytes());
        batch[52..60].copy_from_slice(&self.incarnation);
        batch[60..64].fill(0);
        let crc = crc32c::crc32c_append(seed, &batch[8..]);
        batch[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the fields of a head without its checksum; `None` if it can't be one.
    pub fn peek(bytes: &[u8]) -> Option<BatchHeader> {
        let head = bytes.get(..BATCH_HEADER_BYTES)?;
        if head[..4] != BATCH_MAGIC {
            return None;
        }
        let header = BatchHeader {
            base: Position(u64_at(head, 8)),
            events_before: u64_at(head, 16),
            synced_to: Position(u64_at(head, 24)),
            time_ms: u64_at(head, 32),
            payload_bytes: u32_at(head, 40),
            count: u32_at(head, 44),
            events: u32_at(head, 48),
            incarnation: bytes_at(head, 52),
        };
        let fits = header.payload_bytes as usize + BATCH_HEADER_BYTES <= MAX_BATCH_BYTES
            && header.count as usize * RECORD_HEADER_BYTES <= header.payload_bytes as usize
            && header.events <= header.count
            && header.synced_to <= header.base
            && header.base.0.checked_add(u64::from(header.count)).is_some();
        fits.then_some(header)
    }

    /// Whether `batch` (head and payload) is what was sealed.
    pub fn verify(&self, batch: &[u8], seed: u32) -> bool {
        batch.len() == self.bytes() && crc32c::crc32c_append(seed, &batch[8..]) == u32_at(batch, 4)
    }

    /// Length with its payload.
    pub fn bytes(&self) -> usize {
        BATCH_HEADER_BYTES + self.payload_bytes as usize
    }

    /// Position after its last record.
    pub fn next(&self) -> Position {
        Position(self.base.0 + u64::from(self.count))
    }

    /// Event records before `next`.
    pub fn events_after(&self) -> u64 {
        self.events_before + u64::from(self.events)
    }
}

/// Appends a record to a batch's payload. Returns its length.
pub fn push_record(payload: &mut Vec<u8>, head: Head, key: &[u8], encode: impl FnOnce(&mut Vec<u8>)) -> usize {
    let start = payload.len();
    payload.extend_from_slice(&[0; 4]);
    payload.extend_from_slice(&(key.len() as u16).to_le_bytes());
    payload.extend_from_slice(&[head.kind as u8, 0]);
    payload.extend_from_slice(&head.time_ms.to_le_bytes());
    payload.extend_from_slice(&head.id);
    payload.extend_from_slice(key);
    encode(payload);
    let body_bytes = payload.len() - start - RECORD_HEADER_BYTES - key.len();
    payload[start..start + 4].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    payload.len() - start
}

/// A record as it lies in a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordView<'a> {
    /// Kind, id and time.
    pub head: Head,
    /// Kafka key; empty = none.
    pub key: &'a [u8],
    /// The record itself.
    pub body: &'a [u8],
    /// Length with its header.
    pub bytes: usize,
}

/// The record at the start of `payload`; `None` at its end, or if the bytes are no record.
pub fn next_record(payload: &[u8]) -> Option<RecordView<'_>> {
    let head = payload.get(..RECORD_HEADER_BYTES)?;
    let key_bytes = usize::from(u16::from_le_bytes(bytes_at(head, 4)));
    let body_bytes = u32_at(head, 0) as usize;
    let key_end = RECORD_HEADER_BYTES + key_bytes;
    let end = key_end.checked_add(body_bytes)?;
    let head = Head { kind: Kind::parse(head[6])?, id: bytes_at(head, 16), time_ms: u64_at(head, 8) };
    Some(RecordView {
        head,
        key: payload.get(RECORD_HEADER_BYTES..key_end)?,
        body: payload.get(key_end..end)?,
        bytes: end,
    })
}

/// How much of a payload fits into `room` bytes, cut between records: (bytes, records, events).
pub fn fitting(payload: &[u8], room: usize) -> (usize, u32, u32) {
    let (mut bytes, mut records, mut events) = (0, 0, 0);
    while let Some(record) = next_record(&payload[bytes..]) {
        if bytes + record.bytes > room {
            break;
        }
        bytes += record.bytes;
        records += 1;
        events += u32::from(record.head.kind == Kind::Event);
    }
    (bytes, records, events)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(payload: &[u8]) -> (BatchHeader, Vec<u8>) {
        let (_, count, events) = fitting(payload, payload.len());
        let header = BatchHeader {
            base: Position(7),
            events_before: 5,
            synced_to: Position(6),
            time_ms: 1_795_496_441_123,
            payload_bytes: payload.len() as u32,
            count,
            events,
            incarnation: [9; 8],
        };
        let mut batch = vec![0; BATCH_HEADER_BYTES];
        batch.extend_from_slice(payload);
        header.seal(&mut batch, seed(&[1; 16], 3));
        (header, batch)
    }

    fn record(kind: Kind, key: &[u8], body: &[u8]) -> Vec<u8> {
        let mut payload = Vec::new();
        push_record(&mut payload, Head { kind, id: [2; 16], time_ms: 4 }, key, |out| out.extend_from_slice(body));
        payload
    }

    #[test]
    fn crc32c_is_castagnoli() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn bytes_of_a_batch_are_pinned() {
        let (_, batch) = sample(&record(Kind::Event, b"k", b"{}"));
        let hex: String = batch.iter().map(|byte| format!("{byte:02x}")).collect();
        insta::assert_snapshot!(hex);
    }

    #[test]
    fn a_newer_header_is_told_from_a_bad_one() {
        let header = SegmentHeader {
            journal_id: [1; 16],
            incarnation: [2; 16],
            seq: 3,
            base: Position(4),
            events_before: 5,
            created_ms: 6,
        };
        let mut block = header.encode();
        assert_eq!(SegmentHeader::decode(&block), HeaderRead::Valid(header));
        block[20] ^= 1;
        assert_eq!(SegmentHeader::decode(&block), HeaderRead::Valid(header), "the second copy serves");
        block[2048 + 20] ^= 1;
        assert_eq!(SegmentHeader::decode(&block), HeaderRead::Bad);
        block[8] = 2;
        assert_eq!(SegmentHeader::decode(&block), HeaderRead::Bad, "one copy alone may be a flipped bit");
        block[2048 + 8] = 2;
        assert_eq!(SegmentHeader::decode(&block), HeaderRead::Newer(2));
        assert_eq!(SegmentHeader::decode(&[]), HeaderRead::Bad);
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_noticed(body in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index) {
            let (header, mut batch) = sample(&record(Kind::Rejected, b"", &body));
            let seed = seed(&[1; 16], 3);
            prop_assert!(header.verify(&batch, seed));
            let bit = at.index(batch.len() * 8);
            batch[bit / 8] ^= 1 << (bit % 8);
            let noticed = BatchHeader::peek(&batch).is_none_or(|header| !header.verify(&batch, seed));
            prop_assert!(noticed);
        }

        #[test]
        fn records_come_back(records in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..20),
                prop::collection::vec(any::<u8>(), 0..50)), 0..10)) {
            let mut payload = Vec::new();
            for (event, key, body) in &records {
                payload.extend(record(if *event { Kind::Event } else { Kind::Rejected }, key, body));
            }
            let (mut rest, mut seen) = (&payload[..], Vec::new());
            while let Some(view) = next_record(rest) {
                seen.push((view.head.kind == Kind::Event, view.key.to_vec(), view.body.to_vec()));
                rest = &rest[view.bytes..];
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(seen, records);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = next_record(&bytes);
            let _ = BatchHeader::peek(&bytes);
            let _ = SegmentHeader::decode(&bytes);
        }
    }
}
