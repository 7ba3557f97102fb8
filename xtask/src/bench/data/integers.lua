-- A sieve, a sort, string building and matching.
local turns = tonumber(arg[1])
local seed = 42
local function random(limit)
  seed = (seed * 1103515245 + 12345) & 0x7fffffff
  return (seed >> 8) % limit
end
for turn = 1, turns do
  local composite, primes = {}, 0
  for i = 2, 40000 do
    if not composite[i] then
      primes = primes + 1
      for j = i * i, 40000, i do composite[j] = true end
    end
  end
  local list = {}
  for i = 1, 8000 do list[i] = random(1000000) end
  table.sort(list)
  local parts = {}
  for i = 1, #list, 4 do parts[#parts + 1] = string.format("%x", list[i]) end
  local text, letters = table.concat(parts, " "), 0
  for word in text:gmatch("%a+") do letters = letters + #word end
  print(primes, list[1], list[#list], #text, letters, (text:gsub("a%d", "!")):sub(1, 20))
end
