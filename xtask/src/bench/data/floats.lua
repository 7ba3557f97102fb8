-- Bodies that attract each other, a power iteration, the Mandelbrot set.
local turns = tonumber(arg[1])
local bodies = {}
for i = 1, 5 do
  bodies[i] = { x = i * 1.3, y = i * i * 0.4, z = 1 / i, vx = 0.1 * i, vy = -0.2, vz = 0.05 * i, m = 1 / (i + 1) }
end
local function advance(dt)
  for i = 1, #bodies do
    local a = bodies[i]
    for j = i + 1, #bodies do
      local b = bodies[j]
      local dx, dy, dz = a.x - b.x, a.y - b.y, a.z - b.z
      local square = dx * dx + dy * dy + dz * dz + 0.01
      local pull = dt / (square * square ^ 0.5)
      a.vx, a.vy, a.vz = a.vx - dx * b.m * pull, a.vy - dy * b.m * pull, a.vz - dz * b.m * pull
      b.vx, b.vy, b.vz = b.vx + dx * a.m * pull, b.vy + dy * a.m * pull, b.vz + dz * a.m * pull
    end
  end
  for _, a in ipairs(bodies) do
    a.x, a.y, a.z = a.x + dt * a.vx, a.y + dt * a.vy, a.z + dt * a.vz
  end
end
local function spectral(n)
  local u, v = {}, {}
  for i = 1, n do u[i] = 1 end
  for _ = 1, 3 do
    for i = 0, n - 1 do
      local sum = 0
      for j = 0, n - 1 do sum = sum + u[j + 1] / ((i + j) * (i + j + 1) / 2 + i + 1) end
      v[i + 1] = sum
    end
    u, v = v, u
  end
  return u[1]
end
local function mandelbrot(n)
  local inside = 0
  for py = 0, n - 1 do
    for px = 0, n - 1 do
      local cx, cy, x, y, k = px / n * 3 - 2, py / n * 2 - 1, 0.0, 0.0, 0
      while k < 40 and x * x + y * y < 4 do
        x, y, k = x * x - y * y + cx, 2 * x * y + cy, k + 1
      end
      if k == 40 then inside = inside + 1 end
    end
  end
  return inside
end
for _ = 1, turns do
  for _ = 1, 400 do advance(0.001) end
  print(string.format("%.17g %.17g", bodies[1].x, bodies[5].vz), string.format("%.17g", spectral(60)), mandelbrot(50))
end
print(math.sin(0.5), math.exp(1.5), math.log(7))
