//! Snapshot objects: protobuf inside gzip, written and read as streams.
