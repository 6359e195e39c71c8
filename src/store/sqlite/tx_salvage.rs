//! What is left of damage: chunks that are not where they belong, or belong to no version.

use rusqlite::Row;

use crate::store::bounds::MAX_CHUNK;
use crate::store::{ChunkKey, Salvage, StoreError};

use super::hostile;
use super::tx::{Tx, key, rows};
use super::tx_read::chunk_of;

impl Salvage for Tx {
    fn chunk_copies(
        &mut self,
        (node, version, index): ChunkKey,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        // More copies are an attacker's attempt to keep us busy.
        let sql = "SELECT node, version, idx, sealed FROM chunk \
                   WHERE node = ?1 AND version = ?2 AND idx = ?3 AND length(sealed) <= ?4 LIMIT 64";
        let most = rows(MAX_CHUNK);
        let params = (key(node)?, key(version)?, index, most);
        self.many("cannot look for a chunk", sql, params, |row| {
            chunk_of(row, 0, (node, version, index)).map(<[u8]>::to_vec)
        })
    }

    fn scan_chunk_keys(
        &mut self,
        after: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<ChunkKey>, Option<u64>), StoreError> {
        let what = "cannot scan the chunks";
        let take = |row: &Row<'_>| {
            let key = (
                hostile::id(row, 1)?,
                hostile::id(row, 2)?,
                hostile::index(row, 3)?,
            );
            Ok((hostile::id(row, 0)?, key))
        };
        let found = match after {
            None => {
                let sql = "SELECT id, node, version, idx FROM chunk ORDER BY id LIMIT ?1";
                self.many(what, sql, [rows(limit)], take)
            }
            Some(after) => {
                let sql = "SELECT id, node, version, idx FROM chunk WHERE id > ?1 \
                           ORDER BY id LIMIT ?2";
                self.many(what, sql, (key(after)?, rows(limit)), take)
            }
        }?;
        self.ordered(what, after, found.iter().map(|(id, _)| *id))?;
        // A page that is not full is the last one.
        let cursor = found
            .last()
            .map(|(id, _)| *id)
            .filter(|_| found.len() == limit);
        Ok((found.into_iter().map(|(_, key)| key).collect(), cursor))
    }

    fn delete_stray_chunks(&mut self) -> Result<u64, StoreError> {
        self.change("cannot remove chunks", |tx| {
            // Match chunks to versions by the same numbers as reading does.
            let sql = "DELETE FROM chunk WHERE NOT EXISTS (SELECT 1 FROM version AS v \
                       WHERE v.node = chunk.node AND v.version = chunk.version \
                       AND v.first_chunk > 0 AND chunk.id - v.first_chunk = chunk.idx)";
            Ok(tx.execute(sql, [])? as u64)
        })
    }
}
