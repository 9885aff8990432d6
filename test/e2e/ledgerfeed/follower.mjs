// Follows a follower's ledger at argv[2] with nano and pouchdb, live from its
// beginning and from a cursor, while argv[3], a URL to post to, makes a change.
import { createRequire } from 'node:module'
import assert from 'node:assert/strict'

const require = createRequire(process.cwd() + '/')
const nano = require('nano'), PouchDB = require('pouchdb')
const [, , url, publish] = process.argv
const open = () => nano({ url: url.slice(0, url.lastIndexOf('/')) }).use('registry')
const pouch = new PouchDB(url)
const { doc_count: count, update_seq: head } = await open().info()
console.log(`the ledger has ${count} packages, head ${head}`)

const waitFor = (what, begin) => new Promise((resolve, reject) => {
  const timer = setTimeout(() => reject(new Error(`${what}: nothing in 60 s`)), 60000)
  begin(v => { clearTimeout(timer); resolve(v) }, e => { clearTimeout(timer); reject(e) })
})

const seen = new Set()
const reader = open().changesReader
const all = waitFor('nano from 0', (done, fail) => {
  reader.start({ since: 0, includeDocs: true }).on('error', fail).on('change', c => {
    assert.equal(c.doc._id, c.id)
    assert(Object.keys(c.doc.versions).length > 0 && c.doc._registry_mirror.versions.length > 0)
    seen.add(c.id)
    if (seen.size === count) { reader.stop(); done() }
  })
})
await all
console.log(`nano, live from 0, documents: ${seen.size} packages`)

let changes
const fromNano = waitFor('nano from the head', (done, fail) => {
  const later = open().changesReader
  later.start({ since: head }).on('error', fail).on('change', c => { if (c.id === 'just-published') { later.stop(); done(c) } })
})
const fromPouch = waitFor('pouchdb from the head', (done, fail) => {
  changes = pouch.changes({ live: true, since: head, include_docs: true }).on('error', fail)
    .on('change', c => { if (c.id === 'just-published') { changes.cancel(); done(c) } })
})
const begun = Date.now()
const answer = await fetch(publish, { method: 'POST', body: '-- just-published@1.0.0/index.js --\nnew\n' })
assert(answer.ok, await answer.text())
const [a, b] = await Promise.all([fromNano, fromPouch])
assert.equal(a.seq, b.seq)
assert.equal(b.doc.versions['1.0.0'].version, '1.0.0')
console.log(`nano and pouchdb, live from a cursor: just-published at ${a.seq}, ${Date.now() - begun} ms after it was`)
const { rows } = await pouch.allDocs()
assert.equal(rows.length, count + 1)
console.log(`pouchdb allDocs: ${rows.length} packages`)
