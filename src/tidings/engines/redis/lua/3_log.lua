-- The log: every body once, in a stream whose ids are the positions; what waits for its time; what is read.

-- They are written in one order: s, t, h, b.
local function fields(entry)
  local found = entry[2]
  return {subject = found[2], time = found[4], headers = found[6], body = found[8]}
end

local function position_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end

local function logged(s, position)
  local id = text(position) .. '-0'
  local found = redis.call('XRANGE', key(s.ns, 'log'), id, id)
  return found[1] and fields(found[1])
end

local function size_of(subject, headers, body)
  return #subject + #headers + #body
end

local function append(s, subject, headers, body)
  local meta = key(s.ns, 'meta')
  -- Before all else: should anything below fail, the position is not given a second time.
  local position = redis.call('HINCRBY', meta, 'last', 1)
  redis.call('XADD', key(s.ns, 'log'), text(position) .. '-0', 's', subject, 't', precise(s.now), 'h', headers, 'b', body)
  s.bytes = s.bytes + size_of(subject, headers, body)
  s.subjects[subject] = (s.subjects[subject] or 0) + 1
  for _, route in ipairs(routes_of(s, subject)) do
    for _, claim in ipairs(route.claims) do
      if reaches(claim, subject, position) then
        give_fresh(s, route.group, position)
        break
      end
    end
  end
  s.bells.arrived = true
  return position
end

local function mark_of(s, subject, id)
  return key(s.ns, 'id:' .. subject .. ' ' .. id)
end

local function wait_for_its_time(s, subject, id, due, headers, body)
  local name = subject .. ' ' .. id
  local number = redis.call('HINCRBY', key(s.ns, 'meta'), 'delayed', 1)
  redis.call('HSET', key(s.ns, 'later:messages'), name, cmsgpack.pack({subject, id, due, headers, body}))
  redis.call('ZADD', key(s.ns, 'later:order'), number, name)
  redis.call('ZADD', key(s.ns, 'later'), due, name)
  s.bells.later = true
  s.waits = true
end

local function take_delayed(s, name)
  local packed = redis.call('HGET', key(s.ns, 'later:messages'), name)
  if packed then
    redis.call('HDEL', key(s.ns, 'later:messages'), name)
    redis.call('ZREM', key(s.ns, 'later:order'), name)
    redis.call('ZREM', key(s.ns, 'later'), name)
    return cmsgpack.unpack(packed)
  end
end

-- Whatever has waited for a moment that has come goes into the log.
local function fall_due(s)
  s.waits = redis.call('EXISTS', key(s.ns, 'later')) == 1
  if not s.waits then
    return
  end
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', key(s.ns, 'later'), '-inf', precise(s.now), 'LIMIT', 0, STEP)) do
    local message = take_delayed(s, name)
    local position = append(s, message[1], message[4], message[5])
    redis.call('SET', mark_of(s, message[1], message[2]), text(position), 'PX', WINDOW)
  end
end

-- The position and 1 for what is known already; 0 for what waits.
local function accept(s, subject, id, due, headers, body)
  local mark = mark_of(s, subject, id)
  local position = redis.call('GET', mark)
  if position then
    return {tonumber(position), 1}
  elseif s.waits and redis.call('HEXISTS', key(s.ns, 'later:messages'), subject .. ' ' .. id) == 1 then
    return {0, 1}
  elseif due ~= '' and tonumber(due) > s.now then
    wait_for_its_time(s, subject, id, due, headers, body)
    return {0, 0}
  end
  position = append(s, subject, headers, body)
  redis.call('SET', mark, text(position), 'PX', WINDOW)
  return {position, 0}
end

local function bytes_of(s)
  return tonumber(redis.call('HGET', key(s.ns, 'meta'), 'bytes') or 0) + s.bytes
end

-- limit, then for each message: subject, id, not before, headers, body
offer('store', {}, function(s, args)
  fall_due(s)
  local limit, used = tonumber(args[3]), bytes_of(s)
  local answers = {}
  for place = 4, #args, 5 do
    local subject, id, due, headers, body = unpack(args, place, place + 4)
    local size = size_of(subject, headers, body)
    if limit >= 0 and used + size > limit * SHARE and redis.call('EXISTS', mark_of(s, subject, id)) == 0 then
      answers[#answers + 1] = {-1, text(used)}
    else
      answers[#answers + 1] = accept(s, subject, id, due, headers, body)
      used = used + size
    end
  end
  return answers
end)

offer('delayed', {'allow-oom'}, function(s, args)
  fall_due(s)
  local answers = {}
  for _, name in ipairs(redis.call('ZRANGE', key(s.ns, 'later:order'), 0, tonumber(args[3]) - 1)) do
    answers[#answers + 1] = cmsgpack.unpack(redis.call('HGET', key(s.ns, 'later:messages'), name))
  end
  return answers
end)

offer('cancel', {'allow-oom'}, function(s, args)
  fall_due(s)
  local message = take_delayed(s, args[3] .. ' ' .. args[4])
  if message then
    redis.call('SET', mark_of(s, message[1], message[2]), '0', 'PX', WINDOW)
  end
  return message and 1 or 0
end, true)

-- after, limit, bytes, filters: where it has looked up to, seconds until more may come, and what it found
offer('read', {'allow-oom'}, function(s, args)
  fall_due(s)
  local after, limit, room = tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  local page = redis.call('XRANGE', key(s.ns, 'log'), '(' .. text(after) .. '-0', '+', 'COUNT', STEP / 2)
  local found, size = {}, 0
  for _, raw in ipairs(page) do
    if #found >= limit or (size > room and #found > 0) then
      break
    end
    local entry = fields(raw)
    after = position_of(raw)
    for place = 6, #args do
      if matches(args[place], entry.subject) then
        found[#found + 1] = {after, entry.subject, entry.time, entry.headers, entry.body}
        size = size + size_of(entry.subject, entry.headers, entry.body)
        break
      end
    end
  end
  local more = #page > 0 and after < position_of(page[#page]) or #page == STEP / 2
  local due = redis.call('ZRANGE', key(s.ns, 'later'), 0, 0, 'WITHSCORES')[2]
  return {after, more and 1 or 0, due and precise(tonumber(due) - s.now) or '', found}
end)

offer('subjects', {'allow-oom'}, function(s)
  fall_due(s)
  return redis.call('HGETALL', key(s.ns, 'subjects'))
end)
