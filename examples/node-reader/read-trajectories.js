// Prints every trajectory that is in the topic now as one line of JSON, then leaves.
//
//   node read-trajectories.js localhost:9092 rollstream.trajectories

import { Kafka, logLevel } from "kafkajs";

import { decodeRecord } from "./decode.js";

const [bootstrap = "localhost:9092", topic = "rollstream.trajectories"] = process.argv.slice(2);
const kafka = new Kafka({ clientId: "node-reader", brokers: bootstrap.split(","), logLevel: logLevel.ERROR });

/** Offsets that are still to come, by partition. */
async function openPartitions() {
  const admin = kafka.admin();
  await admin.connect();
  try {
    const offsets = await admin.fetchTopicOffsets(topic);
    const open = offsets.filter(({ low, high }) => BigInt(high) > BigInt(low));
    return new Map(open.map(({ partition, high }) => [partition, BigInt(high)]));
  } finally {
    await admin.disconnect();
  }
}

function print({ partition, message }) {
  const { schema, message: trajectory } = decodeRecord(message.value, message.headers);
  if (schema !== "Trajectory") return;
  const plain = JSON.stringify(trajectory, (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value));
  process.stdout.write(`{"partition":${partition},"offset":${message.offset},"trajectory":${plain}}\n`);
}

const open = await openPartitions();
if (open.size > 0) {
  const consumer = kafka.consumer({ groupId: `node-reader-${process.pid}-${Date.now()}` });
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  await new Promise((resolve, reject) => {
    consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
    const eachMessage = async ({ partition, message }) => {
      try {
        print({ partition, message });
      } catch (error) {
        process.stderr.write(`partition ${partition} offset ${message.offset}: ${error.message}\n`);
      }
      if (BigInt(message.offset) + 1n >= (open.get(partition) ?? 0n)) open.delete(partition);
      if (open.size === 0) resolve();
    };
    consumer.run({ autoCommit: false, eachMessage }).catch(reject);
  });
  await consumer.disconnect();
}
