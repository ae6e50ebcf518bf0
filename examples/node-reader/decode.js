// A RollStream record in Node: headers, zstd, msgpack, and the arrays inside. See docs/wire-format.md.

import { ExtensionCodec, decode as decodeMsgpack } from "@msgpack/msgpack";
import { decompress } from "fzstd";

export const SCHEMA_VERSION = 1;
const MAX_BODY_BYTES = 64 * 1024 * 1024;

const INT32 = 1;
const FLOAT32 = 2;
const FLAGS = 3;
const PLANES = 16;

/** Four runs of bytes (lowest first) back into numbers of four bytes each. */
function joinPlanes(planes) {
  const count = planes.length / 4;
  const bytes = new Uint8Array(planes.length);
  for (let item = 0; item < count; item++) {
    for (let place = 0; place < 4; place++) bytes[4 * item + place] = planes[place * count + item];
  }
  return bytes;
}

/** Little-endian numbers of four bytes, whatever the byte order of this machine. */
function numbers(data, ArrayType, read) {
  if (data.length % 4) throw new Error(`array of ${data.length} bytes, expected a multiple of 4`);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return ArrayType.from({ length: data.length / 4 }, (_, item) => view[read](4 * item, true));
}

/** The first byte counts unused bits of the last byte; then one bit per flag, lowest first. */
function flags(data) {
  const count = (data.length - 1) * 8 - data[0];
  return Uint8Array.from({ length: count }, (_, item) => (data[1 + (item >> 3)] >> (item & 7)) & 1);
}

const arrays = new ExtensionCodec();
const decoders = {
  [INT32]: (data) => numbers(data, Int32Array, "getInt32"),
  [FLOAT32]: (data) => numbers(data, Float32Array, "getFloat32"),
  [FLAGS]: flags,
  [INT32 | PLANES]: (data) => numbers(joinPlanes(data), Int32Array, "getInt32"),
  [FLOAT32 | PLANES]: (data) => numbers(joinPlanes(data), Float32Array, "getFloat32"),
};
for (const [type, decode] of Object.entries(decoders)) {
  arrays.register({ type: Number(type), encode: () => null, decode });
}

const text = (header) => (header === undefined ? "" : header.toString("utf8"));

/**
 * Decode a record.
 *
 * @param {Uint8Array} value the record's value
 * @param {Record<string, Buffer>} headers the record's headers
 * @returns {{schema: string, message: object}} arrays are Int32Array, Float32Array and Uint8Array
 */
export function decodeRecord(value, headers) {
  const version = Number(text(headers["schema_version"]));
  if (!(version >= 1 && version <= SCHEMA_VERSION)) {
    throw new Error(`schema_version ${text(headers["schema_version"])} is not supported, only 1 to ${SCHEMA_VERSION}`);
  }
  const encoding = text(headers["content-encoding"]);
  if (encoding && encoding !== "zstd") throw new Error(`content-encoding ${encoding} is unknown`);
  const body = encoding ? decompress(value) : value;
  if (body.length > MAX_BODY_BYTES) throw new Error(`the body has ${body.length} bytes`);
  return { schema: text(headers["schema"]), message: decodeMsgpack(body, { extensionCodec: arrays }) };
}
