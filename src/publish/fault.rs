//! What can go wrong with Kafka: classed by code, never by text.

use std::fmt;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::stats::{Cause, ErrorKind};
use crate::record::Position;

/// What kind of error it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// Anything whose outcome is unknown or that may pass.
    Doubt,
    /// Another producer of this identity.
    Fenced,
    Authentication,
    Authorization,
    UnknownTopic,
    /// The group's coordinator, which keeps the cursor, doesn't serve.
    CursorPartition,
    Clock,
    Quota,
    /// Size or content of a record.
    Record,
    /// Not Kafka: the schema registry gives no id.
    SchemaRegistry,
    /// Not Kafka: the journal can't be read, or a record can't be parked.
    Disk,
}

/// An error after which the client is dropped.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) fault: Fault,
    /// How it is counted; `None` if it isn't Kafka's.
    pub(super) kind: Option<ErrorKind>,
    /// The record that is refused, if it is known to be this one and not its batch.
    pub(super) culprit: Option<Position>,
    text: String,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Doubt {
    /// An error of the client library.
    pub(super) fn of(doing: &str, error: &KafkaError) -> Doubt {
        let fault = error.rdkafka_error_code().map_or(Fault::Doubt, class);
        let kind = match error {
            KafkaError::Transaction(error) if fault == Fault::Doubt && error.is_fatal() => ErrorKind::Fatal,
            KafkaError::Transaction(error) if fault == Fault::Doubt && error.txn_requires_abort() => {
                ErrorKind::Abortable
            }
            _ => kind(fault, error.rdkafka_error_code().unwrap_or(Code::Unknown)),
        };
        Doubt { fault, kind: Some(kind), culprit: None, text: format!("{doing}: {error}") }
    }

    /// A code of a delivery report, or one that we conclude.
    pub(super) fn code(doing: &str, code: Code) -> Doubt {
        let fault = class(code);
        Doubt { fault, kind: Some(kind(fault, code)), culprit: None, text: format!("{doing}: {code}") }
    }

    /// Something of our own.
    pub(super) fn text(fault: Fault, text: String) -> Doubt {
        Doubt { fault, kind: None, culprit: None, text }
    }

    /// The journal could not be read.
    pub(super) fn journal(error: &crate::journal::ReadError) -> Doubt {
        Doubt::text(Fault::Disk, error.to_string())
    }

    /// The same trouble, known better.
    pub(super) fn into_fault(self, fault: Fault) -> Doubt {
        Doubt { fault, ..self }
    }

    /// The same, of a record that is known.
    pub(super) fn by(self, culprit: Option<Position>) -> Doubt {
        Doubt { culprit, ..self }
    }

    /// What it is called for operators.
    pub(super) fn cause(&self) -> Cause {
        match self.fault {
            Fault::Doubt => Cause::Unreachable,
            Fault::Fenced => Cause::Fenced,
            Fault::Authentication => Cause::Authentication,
            Fault::Authorization => Cause::Authorization,
            Fault::UnknownTopic => Cause::UnknownTopic,
            Fault::CursorPartition => Cause::CursorPartition,
            Fault::Clock => Cause::Clock,
            // A limit that no record of the topic meets is a policy of the cluster: docs/decisions/0006-parking.md.
            Fault::Quota | Fault::Record => Cause::Quota,
            Fault::SchemaRegistry => Cause::SchemaRegistry,
            Fault::Disk => Cause::Damage,
        }
    }
}

/// The class of a code.
pub(super) fn class(code: Code) -> Fault {
    match code {
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Fault::Fenced,
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism | Code::SSL => {
            Fault::Authentication
        }
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => Fault::Authorization,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => Fault::UnknownTopic,
        Code::InvalidTimestamp => Fault::Clock,
        Code::ThrottlingQuotaExceeded | Code::PolicyViolation => Fault::Quota,
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord => Fault::Record,
        _ => Fault::Doubt,
    }
}

/// Whether a delivery failed only because the transaction had failed before: then it is not the cause.
pub(super) fn is_aftermath(code: Code) -> bool {
    matches!(code, Code::PurgeQueue | Code::PurgeInflight | Code::InvalidDifferentRecord)
}

fn kind(fault: Fault, code: Code) -> ErrorKind {
    match (fault, code) {
        (Fault::Fenced, _) => ErrorKind::Fenced,
        (Fault::Doubt | Fault::CursorPartition, code) => match code {
            Code::Fatal => ErrorKind::Fatal,
            Code::MessageTimedOut
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::TimedOutQueue
            | Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::WaitingForCoordinator => ErrorKind::Timeout,
            _ => ErrorKind::Abortable,
        },
        _ => ErrorKind::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_size_and_content_of_a_record_can_park_it() {
        for code in [Code::MessageSizeTooLarge, Code::MessageBatchTooLarge, Code::InvalidRecord] {
            assert_eq!(class(code), Fault::Record, "{code}");
        }
        for code in [
            Code::TopicAuthorizationFailed,
            Code::UnknownTopicOrPartition,
            Code::InvalidTimestamp,
            Code::ThrottlingQuotaExceeded,
            Code::PolicyViolation,
            Code::InvalidMessage,
            Code::MessageTimedOut,
            Code::InvalidProducerEpoch,
            Code::PurgeQueue,
            Code::InvalidDifferentRecord,
            Code::NotEnoughReplicas,
            Code::Unknown,
        ] {
            assert_ne!(class(code), Fault::Record, "{code}");
        }
    }

    #[test]
    fn each_error_has_its_kind_and_cause() {
        let check = |code, kind, cause| {
            let doubt = Doubt::code("x", code);
            assert_eq!((doubt.kind, doubt.cause()), (Some(kind), cause), "{doubt}");
        };
        check(Code::MessageTimedOut, ErrorKind::Timeout, Cause::Unreachable);
        check(Code::ProducerFenced, ErrorKind::Fenced, Cause::Fenced);
        check(Code::Fatal, ErrorKind::Fatal, Cause::Unreachable);
        check(Code::OutOfOrderSequenceNumber, ErrorKind::Abortable, Cause::Unreachable);
        check(Code::GroupAuthorizationFailed, ErrorKind::Refused, Cause::Authorization);
        check(Code::SSL, ErrorKind::Refused, Cause::Authentication);
        check(Code::InvalidTimestamp, ErrorKind::Refused, Cause::Clock);
        check(Code::PolicyViolation, ErrorKind::Refused, Cause::Quota);
        check(Code::UnknownTopicOrPartition, ErrorKind::Refused, Cause::UnknownTopic);
    }
}
