-- Looking, making room, shared state, and who answers requests.

local function counts(s, group)
  come_back(s, group)
  return {
    group.name, waiting(group), redis.call('ZCARD', group.leased), redis.call('ZCARD', group.delayed),
    redis.call('ZCARD', group.dead), redis.call('ZCARD', group.parked),
  }
end

-- messages, bytes, first, last, groups
offer('stats', {'allow-oom'}, function(s)
  fall_due(s)
  local last = tonumber(redis.call('HGET', key(s.ns, 'meta'), 'last'))
  local oldest_entry = redis.call('XRANGE', key(s.ns, 'log'), '-', '+', 'COUNT', 1)[1]
  local groups = {}
  for _, group in pairs(groups_of(s).groups) do
    groups[#groups + 1] = counts(s, group)
  end
  local first = oldest_entry and position_of(oldest_entry) or last + 1
  return {redis.call('XLEN', key(s.ns, 'log')), bytes_of(s), first, last, groups}
end)

-- What one group has to do with an entry: state, seconds it lasts, holder (or what it is behind), attempts, failure.
local function state_of(s, group, position, subject)
  local member = text(position)
  local letter = letter_of(group, member)
  if letter then
    return {group.name, 'dead', '', letter[REASON], letter[LETTER_ATTEMPTS], letter[LETTER_FAILURE]}
  end
  local place = place_of(group, position)
  if not place then
    return {group.name, wants(group.claims, subject, position) and 'done' or 'not wanted', '', '', 0, ''}
  end
  local item = item_of(group, member) or new_item('')
  local about, lasts = item[TOKEN], ''
  if place == 'parked' then
    about = text(item[BEHIND])
  elseif place == 'leased' and item[KEPT] > s.now then
    place, lasts = 'delayed', precise(item[KEPT] - s.now)
  elseif place ~= 'waiting' then
    lasts = precise(tonumber(redis.call('ZSCORE', group[place], member)) - s.now)
  end
  return {group.name, place, lasts, about, item[ATTEMPTS], item[FAILURE], group.paused and 1 or 0}
end

-- position, subject
offer('states', {'allow-oom'}, function(s, args)
  local found = {}
  for _, group in pairs(groups_of(s).groups) do
    come_back(s, group)
    found[#found + 1] = state_of(s, group, tonumber(args[3]), args[4])
  end
  return found
end)

local function is_needed(s, position, subject)
  for _, group in pairs(groups_of(s).groups) do
    if place_of(group, position) then
      return true
    end
    local fill = redis.call('HMGET', group.fill, 'next', 'upto')
    if fill[1] and position >= tonumber(fill[1]) and position <= tonumber(fill[2])
      and wants(group.claims, subject, position) then
      return true
    end
  end
  return false
end

-- filter, first, below: how many went, and where to go on, or 0 at the end
offer('purge', {'allow-oom'}, function(s, args)
  local log = key(s.ns, 'log')
  local page = redis.call('XRANGE', log, args[4] .. '-0', '(' .. args[5] .. '-0', 'COUNT', STEP / 5)
  local gone = 0
  for _, raw in ipairs(page) do
    local position, entry = position_of(raw), fields(raw)
    if matches(args[3], entry.subject) and not is_needed(s, position, entry.subject) then
      redis.call('XDEL', log, raw[1])
      s.bytes = s.bytes - size_of(entry.subject, entry.headers, entry.body)
      s.subjects[entry.subject] = (s.subjects[entry.subject] or 0) - 1
      gone = gone + 1
    end
  end
  return {gone, #page == STEP / 5 and position_of(page[#page]) + 1 or 0}
end, true)

offer('space', {'no-writes'}, function(s)
  return bytes_of(s)
end)

offer('recall', {'no-writes'}, function(s, args)
  local packed = redis.call('HGET', key(s.ns, 'records'), args[3])
  return packed and cmsgpack.unpack(packed) or {}
end)

-- key, value, revision
offer('register', {'allow-oom'}, function(s, args)
  local records = key(s.ns, 'records')
  local packed = redis.call('HGET', records, args[3])
  local revision = packed and cmsgpack.unpack(packed)[1] or 0
  if revision ~= tonumber(args[5]) then
    refuse('CONFLICT', args[3] .. ' is at revision ' .. revision .. ', not ' .. args[5])
  end
  redis.call('HSET', records, args[3], cmsgpack.pack({revision + 1, args[4]}))
  return revision + 1
end, true)

-- Responders stand in a list for each filter and group, and take turns; PUBLISH tells which of them are alive.
local function share_of(s, name)
  return key(s.ns, 'serve:' .. name)
end

-- filter, group, member
offer('serve', {'allow-oom'}, function(s, args)
  local name = args[3] .. ' ' .. args[4]
  redis.call('SADD', key(s.ns, 'serving'), name)
  redis.call('LREM', share_of(s, name), 0, args[5])
  redis.call('RPUSH', share_of(s, name), args[5])
  return 1
end)

local function leave(s, name, member)
  redis.call('LREM', share_of(s, name), 0, member)
  if redis.call('EXISTS', share_of(s, name)) == 0 then
    redis.call('SREM', key(s.ns, 'serving'), name)
  end
end

offer('leave', {'allow-oom'}, function(s, args)
  leave(s, args[3] .. ' ' .. args[4], args[5])
  return 1
end)

-- subject, question: how many were asked, one of each group
offer('ask', {'allow-oom'}, function(s, args)
  local asked = 0
  for _, name in ipairs(redis.call('SMEMBERS', key(s.ns, 'serving'))) do
    if matches(split(name, ' ')[1], args[3]) then
      for _ = 1, redis.call('LLEN', share_of(s, name)) do
        local member = redis.call('LMOVE', share_of(s, name), share_of(s, name), 'LEFT', 'RIGHT')
        if redis.call('PUBLISH', member, name .. '\n' .. args[4]) > 0 then
          asked = asked + 1
          break
        end
        leave(s, name, member)
      end
    end
  end
  return asked
end)

-- channel, headers, body: how many connections heard it. Everybody else hears the body alone; our own listeners hear
-- its headers right before it, because nothing comes between the two.
offer('say', {'allow-oom'}, function(s, args)
  if args[4] ~= '{}' then
    redis.call('PUBLISH', 'tidings:headers:' .. args[3], args[4])
  end
  return redis.call('PUBLISH', args[3], args[5])
end)
