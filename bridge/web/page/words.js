// Numbers and times as a person reads them.

export const number = (value) => new Intl.NumberFormat("en").format(value);
export const many = (count, one, more = `${one}s`) => `${number(count)} ${count === 1 ? one : more}`;
export const clock = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString("sv") : "–");
export const hour = (seconds) => clock(seconds).slice(11, 16);
export const oldest = (seconds) => `the oldest for ${duration(seconds)}`;
export const listed = (texts) => texts.filter(Boolean).join(" · ");

export function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.round(seconds)} s`;
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
  const hours = Math.floor(minutes / 60);
  return `${Math.floor(hours / 24)} d${hours % 24 ? ` ${hours % 24} h` : ""}`;
}

export function rate(perSecond) {
  if (perSecond >= 10) return `${number(Math.round(perSecond))}/s`;
  if (perSecond >= 1) return `${perSecond.toFixed(1)}/s`;
  return perSecond > 0 ? `${Number((perSecond * 60).toPrecision(2))}/min` : "0/s";
}
