// Reads the feed at argv[2] with nano and pouchdb, as their users do, and fails
// unless every change comes, once, in order. The feed has argv[3] documents
// "package-NNNN" (7 deleted), "@scope/name", and gains "live-NNNN" as time goes.
import { createRequire } from 'node:module'
import assert from 'node:assert/strict'

const require = createRequire(process.cwd() + '/')
const nano = require('nano'), PouchDB = require('pouchdb')
const [, , url, count] = process.argv
const total = Number(count) + 1
const db = nano({ url: url.slice(0, url.lastIndexOf('/')) }).use('registry')
const pouch = new PouchDB(url)
const say = (what, got) => console.log(`${what}: ${got}`)
const number = seq => Number(String(seq).split('-')[0])

// rising fails unless the changes follow `after`, none missing: in this feed
// each sequence is some document's newest from the moment it is live.
function rising (changes, after) {
  let last = number(after)
  for (const c of changes) {
    assert(number(c.seq) > last, `${c.seq} after ${last}`)
    last = number(c.seq)
  }
}

// until runs a listener until it has `n` changes.
function until (n, on, stop) {
  return new Promise((resolve, reject) => {
    const got = []
    const timer = setTimeout(() => reject(new Error(`${got.length} of ${n} changes in 20 s`)), 20000)
    on(change => {
      got.push(change)
      if (got.length === n) { clearTimeout(timer); stop(); resolve(got) }
    }, e => { clearTimeout(timer); reject(e) })
  })
}

function nanoLive (n, opts) {
  const reader = nano({ url: url.slice(0, url.lastIndexOf('/')) }).use('registry').changesReader
  return until(n, (change, fail) => {
    const ee = reader.start(opts)
    ee.on('change', change)
    ee.on('error', fail)
  }, () => reader.stop())
}

function pouchLive (n, opts) {
  let changes
  return until(n, (change, fail) => {
    changes = pouch.changes({ live: true, ...opts }).on('change', change).on('error', fail)
  }, () => changes.cancel())
}

const finished = ee => new Promise((resolve, reject) => {
  const rows = []
  ee.on('batch', b => rows.push(...b))
  ee.on('end', last => resolve({ rows, last }))
  ee.on('error', reject)
})

// nano
const info = await db.info()
assert.equal(info.db_name, 'registry')
assert(info.doc_count >= total - 1 && number(info.update_seq) >= total)
say('nano info', `${info.doc_count} documents, head ${info.update_seq}`)

let got = await nanoLive(total + 5, { since: 0 })
rising(got, 0)
assert(got.some(c => c.id === 'package-0007' && c.deleted) && got.some(c => c.id === '@scope/name'))
say('nano changesReader from 0, live', `${got.length} changes to ${got.at(-1).seq}`)

const cursor = got.at(-1).seq
got = await nanoLive(5, { since: cursor, includeDocs: true, batchSize: 1 })
rising(got, cursor)
assert.equal(number(got[0].seq), number(cursor) + 1)
assert(got.every(c => c.doc._id === c.id && c.doc._rev === c.changes[0].rev))
say('nano changesReader from a cursor, live, documents', got.map(c => c.seq).join(' '))

got = await nanoLive(3, { since: 'now' })
say('nano changesReader from now', got.map(c => c.id).join(' '))

let { rows, last } = await finished(db.changesReader.get({ since: 0, batchSize: 100, timeout: 50, qs: { doc_ids: JSON.stringify(['package-0001', '@scope/name', 'package-0007']), filter: '_doc_ids' } }))
assert.deepEqual(rows.map(r => r.id).sort(), ['@scope/name', 'package-0001', 'package-0007'])
say('nano changesReader.get by doc_ids', `${rows.length} changes to ${last}`)

;({ rows, last } = await finished(db.changesReader.spool({ since: 0, includeDocs: true, batchSize: 100 })))
rising(rows, 0)
assert(rows.length >= total && number(last) >= number(rows.at(-1).seq))
say('nano changesReader.spool', `${rows.length} changes to ${last}`)

const page = await db.changes({ since: 0, limit: 10 })
assert.equal(page.results.length, 10)
assert(page.pending > 0)
say('nano changes', `${page.results.length}, pending ${page.pending}`)

const batch = await db.list({ limit: 5, startkey: 'package-0005', include_docs: true })
assert.deepEqual(batch.rows.map(r => r.id), ['package-0005', 'package-0006', 'package-0008', 'package-0009', 'package-0010'])
const fetched = await db.fetch({ keys: ['@scope/name', 'package-0007', 'nothing'] })
assert.equal(fetched.rows[0].doc._id, '@scope/name')
assert.equal(fetched.rows[1].value.deleted, true)
assert.equal(fetched.rows[2].error, 'not_found')
const doc = await db.get('@scope/name')
assert.equal(doc._id, '@scope/name')
say('nano list, fetch, get', `${batch.rows.length} rows, ${fetched.rows.length} keys, ${doc._rev}`)

await assert.rejects(db.get('package-0007'), e => e.statusCode === 404 && e.reason === 'deleted')
await assert.rejects(db.insert({ a: 1 }, 'new'), e => e.statusCode === 405)
await assert.rejects(db.destroy('@scope/name', doc._rev), e => e.statusCode === 405)
await assert.rejects(db.bulk({ docs: [{ a: 1 }] }), e => e.statusCode === 405)
await assert.rejects(db.changes({ since: '1-otherfeed' }), e => e.statusCode === 409)
say('nano refused', 'deleted 404, writes 405, a foreign cursor 409')

// pouchdb
assert.equal((await pouch.info()).db_name, 'registry')
got = await pouchLive(total + 5, { since: 0, include_docs: true })
rising(got, 0)
assert(got.every(c => c.doc._id === c.id))
assert(got.some(c => c.deleted && c.doc._deleted))
say('pouchdb changes live from 0, documents', `${got.length} changes to ${got.at(-1).seq}`)

const from = got.at(-1).seq
got = await pouchLive(5, { since: from, heartbeat: 200 })
rising(got, from)
assert.equal(number(got[0].seq), number(from) + 1)
say('pouchdb changes live from a cursor', got.map(c => c.seq).join(' '))

const all = await pouch.changes({ since: 0 })
rising(all.results, 0)
assert(all.results.length >= total)
const back = await pouch.changes({ descending: true, limit: 3 })
assert.equal(back.results.length, 3)
assert(number(back.results[0].seq) > number(back.results[2].seq))
const some = await pouch.changes({ since: 0, doc_ids: ['package-0001', '@scope/name'] })
assert.equal(some.results.length, 2)
say('pouchdb changes', `${all.results.length}, descending ${back.results.map(c => c.seq).join(' ')}, ${some.results.length} by doc_ids`)

const listed = await pouch.allDocs({ include_docs: true })
assert(listed.rows.length >= total - 1 && listed.total_rows >= total - 1 && listed.rows.every(r => r.doc._id === r.id))
const keys = await pouch.allDocs({ keys: ['@scope/name', 'package-0007', 'nothing'], include_docs: true })
assert.equal(keys.rows.length, 3)
const reversed = await pouch.allDocs({ descending: true, startkey: 'package-0003', endkey: 'package-0001', inclusive_end: false })
assert.deepEqual(reversed.rows.map(r => r.id), ['package-0003', 'package-0002'])
assert.equal((await pouch.get('@scope/name'))._id, '@scope/name')
say('pouchdb allDocs, get', `${listed.rows.length} of ${listed.total_rows}, ${keys.rows.length} keys`)

await assert.rejects(pouch.put({ _id: 'new' }), e => e.status === 405)
await assert.rejects(pouch.get('package-0007'), e => e.status === 404)
const copy = await new Promise(resolve => new PouchDB(url + '-none', { skip_setup: true }).info().then(() => resolve('there'), () => resolve('refused')))
say('pouchdb refused', `writes 405, another database ${copy}`)
process.exit(0)
